"""Where an adapter was trained, by its record, and where it lies."""

from pathlib import Path
from typing import Any

import pytest

from mimicry.tuning.adapters.judge import recorded_elsewhere
from mimicry.tuning.adapters.training_run import TrainingRun

HERE = Path("/study/models/lora/s/mist__none/a/b/Anna")


def of(output_dir: Any) -> TrainingRun:
    return TrainingRun({"paths": {"output_dir": output_dir}})


@pytest.mark.parametrize(
    "output_dir",
    [
        "/study/models/lora/s/mist__none/a/b/Anna",
        "/another machine/models/lora/s/mist__none/a/b/Anna",
        # Reused for a study of another recipe beside it.
        "/study/models/lora/s@big/mist__none/a/b/Anna",
        # What tells nothing.
        "/tmp/out",
        "",
        None,
        7,
    ],
)
def test_at_its_place_as_far_as_can_be_told(output_dir: Any) -> None:
    assert recorded_elsewhere(HERE, of(output_dir)) == ""


@pytest.mark.parametrize("place", ["none__none/a/b/Anna", "mist__none/a/b/Boris", "mist__none/z/b/Anna"])
def test_the_record_of_another(place: str) -> None:
    found = recorded_elsewhere(HERE, of(f"/study/models/lora/s/{place}"))
    assert found == f"its record is of {place}"


def test_a_folder_outside_of_a_study_or_no_record_of_paths() -> None:
    assert recorded_elsewhere(Path("/tmp/out"), of(str(HERE))) == ""
    assert recorded_elsewhere(HERE, TrainingRun({})) == ""
