"""What squeue says becomes jobs of cells: by their name and index, whatever ended who submitted them."""

import json
import stat
from pathlib import Path

import pytest

from mimicry.study.tree import State, StudyTree
from mimicry.tuning.execution.slurm_queue import (
    CELLS,
    QueueUnknown,
    cancel_jobs,
    forget_submission,
    jobs_of_study,
    live_jobs,
    new_submission,
    with_queue,
)
from tests.small_study import ANNA, BORIS, plan_of, put_adapter, target_of
from tests.tuning.fake_slurm import FakeSlurm, put_submission


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "bin", monkeypatch)


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
    assert live_jobs(tree) == {}


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"]
)
def test_a_job_that_may_train_is_live(tree: StudyTree, fake_slurm: FakeSlurm, state: str) -> None:
    name = put_submission(tree, ["a"])
    fake_slurm.show(f"{name}|7|0|{state}|n1|None")
    assert set(live_jobs(tree)) == {"a"}


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
    queued = with_queue(plan, jobs_of_study(tree))
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
    queued = with_queue(plan, jobs_of_study(tree))
    assert "other options" not in target_of(queued, ANNA).reason
    assert "other options" in target_of(queued, BORIS).reason
    assert "scancel 7_1" in target_of(queued, BORIS).reason


def test_jobs_are_cancelled_by_id(fake_slurm: FakeSlurm) -> None:
    cancel_jobs([], pending_only=True)
    cancel_jobs(["7_0", "7_1"], pending_only=True)
    assert fake_slurm.calls("scancel") == ["--state=PENDING 7_0 7_1"]
