"""The options of a Slurm cluster: times, sizes, and what is refused."""

from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.tuning.options.slurm_options import SlurmSettings, minutes_of


def settings_of(**given: Any) -> SlurmSettings:
    plain = {"slurm_time": "60", "slurm_memory": "8G", "slurm_extra": (), "slurm_gres": None}
    return SlurmSettings.of({**plain, **given})


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("90:01", 91),
        ("1:30:00", 90),
        ("2-0", 2880),
        ("1-2:03", 1563),
        ("0-1:00:30", 61),
    ],
)
def test_times_are_those_of_slurm(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "1h"])
def test_another_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it takes minutes"):
        minutes_of(text)


def test_a_time_that_leaves_none_for_training_is_refused() -> None:
    with pytest.raises(ValueError, match="10 minutes or more"):
        minutes_of("9:00")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(slurm_time="soon", slurm_memory="lots", slurm_extra=("array=3", "Nice"))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--slurm-time soon",
        "--slurm-mem lots",
        "--slurm-extra Nice",
        "--slurm-extra array",
    ]


def test_other_options_of_sbatch_are_passed_on() -> None:
    assert settings_of(slurm_extra=("nice=100", "--hold")).extra == (("nice", "100"), ("hold", True))


@pytest.mark.parametrize(("given", "gres"), [(None, "gpu:2"), ("gpu:a100:2", "gpu:a100:2"), ("none", None)])
def test_a_job_has_a_gpu_for_each_process_unless_something_else_is_typed(
    given: str | None, gres: str | None
) -> None:
    assert settings_of(slurm_gres=given).gres_for(2) == gres
