"""Submitting: what a job is told, what Slurm is asked for, and what its refusals become."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimicry.common.errors import BatchFault
from mimicry.study.states import State
from mimicry.study.tree import StudyTree
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.execution.slurm import QueueFull, SlurmSubmitter, SubmissionUnknown, cell_words
from mimicry.tuning.execution.slurm_task import IGNORING
from mimicry.tuning.hub.upload import HubOptions
from mimicry.tuning.options.click_options import selection_of, take_config
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.slurm_options import SlurmSettings
from tests.small_study import ANNA, CONFIG, COUNTERED, EVERYBODY, plan_of, put_adapter, target_of
from tests.tuning.fake_slurm import FakeSlurm, FakeSubmitit

SETTINGS = SlurmSettings(partition="gpu", minutes=90, memory="32G", cpus=4, python="/nodes/python")


@pytest.fixture
def fake_submitit(monkeypatch: pytest.MonkeyPatch) -> FakeSubmitit:
    return FakeSubmitit().install(monkeypatch)


def submitter(tree: StudyTree, settings: SlurmSettings = SETTINGS) -> SlurmSubmitter:
    return SlurmSubmitter(tree, settings)


class TestWords:
    def test_apply_tuning_understands_them_as_the_same_training(self, tree: StudyTree) -> None:
        config = replace(CONFIG, learning_rate=5e-5, hold_out=1, instance_prompt="-a painting of sks")
        plan = plan_of(tree, COUNTERED, config=config, variant="wide", allow_unpaired=True)
        words = cell_words(target_of(plan), "/nodes/python")
        assert words[:3] == ["/nodes/python", "-m", "mimicry.tuning.apply_tuning"]
        context = apply_tuning.make_context("apply_tuning", words[3:])
        parameters = context.params
        assert take_config(dict(parameters)) == config
        assert selection_of(parameters).artists == (ANNA.name,)
        assert (parameters["protections"], parameters["countermeasures"]) == (("mist",), ("noisy_upscaling",))
        assert parameters["study_variant"] == ("wide",)
        assert (parameters["engine"], parameters["wait"], parameters["push_to_hub"]) == (
            "local",
            False,
            False,
        )
        assert (parameters["allow_unpaired"], parameters["retrain_stale"]) == (True, False)

    def test_uploads_are_those_of_the_call(self, tree: StudyTree) -> None:
        plan = plan_of(tree, hub=HubOptions(namespace="lab", base_model_id=None))
        words = cell_words(target_of(plan), "python")
        assert {"--push-to-hub", "--hub-namespace=lab"} <= {*words}
        assert "--no-push-to-hub" not in words

    def test_the_task_of_an_overwrite_knows_what_it_replaces(
        self, tree: StudyTree, fake_submitit: FakeSubmitit
    ) -> None:
        put_adapter(tree)
        target = target_of(plan_of(tree, overwrite=True))
        assert target.state is State.PENDING
        submitter(tree).submit([target])
        (task,) = fake_submitit.submitted[0]
        assert task.replaces[0] == "2026-01-02T03:04:05+00:00"
        assert "--overwrite" not in cell_words(target, "python"), "a new adapter would be replaced too"


class TestSubmit:
    def test_slurm_is_asked_for_what_was_typed(self, tree: StudyTree, fake_submitit: FakeSubmitit) -> None:
        settings = replace(SETTINGS, max_parallel=4, setup=("module load x",), extra=(("nice", "100"),))
        config = TuningConfig(rank=4, num_processes=2)
        plan = plan_of(tree, config=config)
        array = submitter(tree, settings).submit(plan.of(State.PENDING), after="6")
        assert array == "1"
        asked = fake_submitit.parameters[0]
        assert asked["job_name"].startswith("mimicry-")
        assert asked["folder"] == (tree.slurm / asked["job_name"]).absolute()
        del asked["job_name"], asked["folder"]
        assert asked == {
            "max_num_timeout": asked["max_num_timeout"],
            "python": shlex.join([*IGNORING, "/nodes/python"]),
            "time": 90,
            "cpus_per_task": 4,
            "mem": "32G",
            "signal_delay_s": 180,
            "array_parallelism": 4,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"requeue": True, "nice": "100"},
            "partition": "gpu",
            "gres": "gpu:2",
            "dependency": "afterany:6",
            "setup": ["module load x"],
        }
        assert asked["max_num_timeout"] > 1000
        assert len(fake_submitit.submitted[0]) == len(EVERYBODY)

    @pytest.mark.parametrize(
        ("answer", "error", "is_forgotten"),
        [
            ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job ...", QueueFull, True),
            ("sbatch: error: Slurm temporarily unable to accept job", QueueFull, True),
            ("sbatch: error: Socket timed out on send/recv operation", SubmissionUnknown, False),
            ("sbatch: error: invalid partition specified: gpu", BatchFault, True),
        ],
    )
    def test_a_refusal_is_told_apart_from_a_full_queue(
        self,
        tree: StudyTree,
        fake_submitit: FakeSubmitit,
        answer: str,
        error: type[Exception],
        is_forgotten: bool,
    ) -> None:
        fake_submitit.answers = [answer]
        with pytest.raises(error) as caught:
            submitter(tree).submit(plan_of(tree).of(State.PENDING))
        assert answer.splitlines()[0].partition(": error: ")[2] in str(caught.value)
        assert (list(tree.slurm.glob("mimicry-*")) == []) is is_forgotten

    def test_without_submitit_it_is_said_what_to_type(
        self, tree: StudyTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(BatchFault, match="pip install submitit"):
            submitter(tree).submit(plan_of(tree).of(State.PENDING))

    def test_a_script_is_shown_without_writing_anything(
        self, tree: StudyTree, fake_submitit: FakeSubmitit
    ) -> None:
        script = submitter(tree).script(plan_of(tree))
        assert f'"map_count": {len(EVERYBODY)}' in script
        assert not tree.slurm.exists()


class TestLargestArray:
    @pytest.mark.parametrize(
        ("said", "size"),
        [("MaxArraySize            = 1001\n", 1000), ("MaxArraySize = 1\n", 1), ("nothing", 1000)],
    )
    def test_it_is_what_the_cluster_says(
        self, tree: StudyTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, size: int
    ) -> None:
        FakeSlurm.install(tmp_path / "bin", monkeypatch).configure(said)
        assert submitter(tree).largest_array() == size
