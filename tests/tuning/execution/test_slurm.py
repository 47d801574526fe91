"""Slurm: what it is asked for, what its refusals become, and what squeue says of the jobs of a study."""

import json
import shlex
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimicry.common.errors import BatchFault
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.execution.cluster import QueueFull, QueueUnknown, SubmissionUnknown, worker_words
from mimicry.tuning.execution.engines import queued_jobs
from mimicry.tuning.execution.slurm import (
    CELLS,
    SlurmExecutor,
    forget_submission,
    jobs_of_study,
    new_submission,
)
from mimicry.tuning.execution.slurm_task import IGNORING
from mimicry.tuning.hub.upload import HubOptions
from mimicry.tuning.options.click_options import selection_of, take_config
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.slurm_options import SlurmSettings
from tests.small_study import ANNA, BORIS, CONFIG, COUNTERED, EVERYBODY, plan_of, put_adapter, target_of
from tests.tuning.fake_slurm import FakeSlurm, FakeSubmitit, put_submission

SETTINGS = SlurmSettings(partition="gpu", minutes=90, memory="32G", cpus=4, python="/nodes/python")


@pytest.fixture
def fake_submitit(monkeypatch: pytest.MonkeyPatch) -> FakeSubmitit:
    return FakeSubmitit().install(monkeypatch)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "bin", monkeypatch)


class TestWords:
    def test_apply_tuning_understands_them_as_the_same_training(self, tree: StudyTree) -> None:
        config = replace(CONFIG, learning_rate=5e-5, hold_out=1, instance_prompt="-a painting of sks")
        plan = plan_of(tree, COUNTERED, config=config, variant="wide", allow_unpaired=True)
        words = worker_words(target_of(plan), "/nodes/python")
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
        words = worker_words(target_of(plan), "python")
        assert {"--push-to-hub", "--hub-namespace=lab"} <= {*words}
        assert "--no-push-to-hub" not in words

    def test_the_task_of_an_overwrite_knows_what_it_replaces(
        self, tree: StudyTree, fake_submitit: FakeSubmitit
    ) -> None:
        put_adapter(tree)
        target = target_of(plan_of(tree, overwrite=True))
        assert target.state is State.WAITING
        SlurmExecutor(SETTINGS).submit_array([target])
        (task,) = fake_submitit.submitted[0]
        assert task.replaces[0] == "2026-01-02T03:04:05+00:00"
        assert "--overwrite" not in worker_words(target, "python"), "a new adapter would be replaced too"


class TestSubmit:
    def test_slurm_is_asked_for_what_was_typed(self, tree: StudyTree, fake_submitit: FakeSubmitit) -> None:
        settings = replace(SETTINGS, max_parallel=4, setup=("module load x",), extra=(("nice", "100"),))
        config = TuningConfig(rank=4, num_processes=2)
        plan = plan_of(tree, config=config)
        array = SlurmExecutor(settings).submit_array(plan.of(State.WAITING), after="6")
        assert array == "1"
        asked = fake_submitit.parameters[0]
        assert asked["job_name"].startswith("mimicry-")
        assert asked["folder"] == (tree.queue("slurm") / asked["job_name"]).absolute()
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
            SlurmExecutor(SETTINGS).submit_array(plan_of(tree).of(State.WAITING))
        assert answer.splitlines()[0].partition(": error: ")[2] in str(caught.value)
        assert (list(tree.queue("slurm").glob("mimicry-*")) == []) is is_forgotten

    def test_without_submitit_it_is_said_what_to_type(
        self, tree: StudyTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(BatchFault, match="pip install submitit"):
            SlurmExecutor(SETTINGS).submit_array(plan_of(tree).of(State.WAITING))

    def test_a_script_is_shown_without_writing_anything(
        self, tree: StudyTree, fake_submitit: FakeSubmitit
    ) -> None:
        script = SlurmExecutor(SETTINGS).describe(plan_of(tree))
        assert f'"map_count": {len(EVERYBODY)}' in script
        assert not tree.queue("slurm").exists()


class TestLargestArray:
    @pytest.mark.parametrize(
        ("said", "size"),
        [("MaxArraySize            = 1001\n", 1000), ("MaxArraySize = 1\n", 1), ("nothing", 1000)],
    )
    def test_it_is_what_the_cluster_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, size: int
    ) -> None:
        FakeSlurm.install(tmp_path / "bin", monkeypatch).configure(said)
        assert SlurmExecutor(SETTINGS).largest_array() == size


def test_without_submissions_nobody_is_asked(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    assert jobs_of_study(tree) == {}
    assert fake_slurm.calls("squeue") == []


def test_a_job_is_for_the_cell_with_its_index(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    name = put_submission(tree, ["a", "b", "c"])
    fake_slurm.show(
        f"{name}|7|0|RUNNING|n1|None", f"{name}|7|2|PENDING||Priority", "other|8|1|RUNNING|n1|None"
    )
    jobs = jobs_of_study(tree)
    assert {key: job.id for key, job in jobs.items()} == {"a": "7_0", "c": "7_2"}
    assert str(jobs["a"]) == "job 7_0 is running on n1"
    assert str(jobs["c"]) == "job 7_2 is pending (Priority)"
    assert jobs["a"].runs
    assert not jobs["c"].runs


def test_one_job_alone_is_no_array(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    name = put_submission(tree, ["a"])
    fake_slurm.show(f"{name}|7|N/A|PENDING||None")
    assert jobs_of_study(tree)["a"].id == "7"


@pytest.mark.parametrize(
    "state", ["CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"]
)
def test_a_job_that_has_ended_is_not_live(tree: StudyTree, fake_slurm: FakeSlurm, state: str) -> None:
    name = put_submission(tree, ["a"])
    fake_slurm.show(f"{name}|7|0|{state}|n1|None")
    assert set(jobs_of_study(tree)) == {"a"}
    assert queued_jobs(tree) == ({}, [])


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"]
)
def test_a_job_that_may_train_is_live(tree: StudyTree, fake_slurm: FakeSlurm, state: str) -> None:
    name = put_submission(tree, ["a"])
    fake_slurm.show(f"{name}|7|0|{state}|n1|None")
    assert set(queued_jobs(tree)[0]) == {"a"}


def test_of_two_jobs_for_a_cell_the_live_one_counts(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    first, second = put_submission(tree, ["a"], "mimicry-aa"), put_submission(tree, ["a"], "mimicry-bb")
    fake_slurm.show(f"{first}|7|0|RUNNING|n1|None", f"{second}|8|0|CANCELLED||None")
    assert jobs_of_study(tree)["a"].id == "7_0"


@pytest.mark.parametrize(
    "reason", ["JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "InvalidQOS"]
)
def test_a_job_that_will_not_start_by_itself_is_stuck(
    tree: StudyTree, fake_slurm: FakeSlurm, reason: str
) -> None:
    name = put_submission(tree, ["a"])
    fake_slurm.show(f"{name}|7|0|PENDING||{reason}")
    assert jobs_of_study(tree)["a"].is_stuck
    fake_slurm.show(f"{name}|7|0|PENDING||Resources")
    assert not jobs_of_study(tree)["a"].is_stuck


def test_a_queue_that_does_not_answer_is_an_error(
    tree: StudyTree, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_submission(tree, ["a"])
    fake_slurm.refuse("slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(QueueUnknown, match="Unable to contact"):
        jobs_of_study(tree)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(QueueUnknown, match="login node"):
        jobs_of_study(tree)
    jobs, (fault,) = queued_jobs(tree)
    assert (jobs, "login node" in fault) == ({}, True)


def test_a_torn_submission_is_passed_over(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    name = put_submission(tree, ["a"])
    torn = new_submission(tree, "mimicry-bb", {"b": None})
    (torn / CELLS).write_text('{"submi')
    fake_slurm.show(f"{name}|7|0|RUNNING|n1|None")
    assert set(jobs_of_study(tree)) == {"a"}


def test_a_submission_is_for_its_user_alone_and_can_be_taken_back(tree: StudyTree) -> None:
    folder = new_submission(tree, "mimicry-aa", {"a": None, "b": "hash"})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert json.loads((folder / CELLS).read_text())["cells"] == {"a": None, "b": "hash"}
    forget_submission(folder)
    assert not folder.exists()


def test_a_plan_shows_what_is_queued_and_leaves_what_is_complete(
    tree: StudyTree, fake_slurm: FakeSlurm
) -> None:
    put_adapter(tree, artist=BORIS)
    plan = plan_of(tree)
    keys = [target_of(plan, artist).adapter.key for artist in (ANNA, BORIS)]
    name = put_submission(tree, keys)
    fake_slurm.show(f"{name}|7|0|PENDING||Priority", f"{name}|7|1|RUNNING|n1|None")
    queued = plan_of(tree, queue=jobs_of_study(tree))
    assert target_of(queued, ANNA).state is State.QUEUED
    assert target_of(queued, ANNA).reason == "job 7_0 is pending (Priority)"
    assert target_of(queued, BORIS).state is State.COMPLETE
    assert queued.counts()["queued"] == 1


def test_a_job_that_was_submitted_with_other_options_says_so(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    plan = plan_of(tree)
    anna, boris = target_of(plan, ANNA), target_of(plan, BORIS)
    new_submission(
        tree,
        "mimicry-aa",
        {anna.adapter.key: anna.request.spec.recipe_hash, boris.adapter.key: "of another recipe"},
    )
    fake_slurm.show("mimicry-aa|7|0|PENDING||Priority", "mimicry-aa|7|1|PENDING||Priority")
    queued = plan_of(tree, queue=jobs_of_study(tree))
    assert "other options" not in target_of(queued, ANNA).reason
    assert "other options" in target_of(queued, BORIS).reason
    assert "scancel 7_1" in target_of(queued, BORIS).reason


def test_jobs_that_wait_are_cancelled_by_id(tree: StudyTree, fake_slurm: FakeSlurm) -> None:
    name = put_submission(tree, ["a", "b"])
    fake_slurm.show(f"{name}|7|0|PENDING||Priority", f"{name}|7|1|PENDING||Priority")
    executor, jobs = SlurmExecutor(SETTINGS), list(jobs_of_study(tree).values())
    executor.cancel_waiting([])
    executor.cancel_waiting(jobs)
    assert fake_slurm.calls("scancel") == ["--state=PENDING 7_0 7_1"]
    assert executor.how_to_cancel(jobs) == f"scancel --name={name}"
