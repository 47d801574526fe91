"""Trainings as jobs of a real Slurm on this machine: what they get, and what becomes of them."""

import re
from collections import Counter
from pathlib import Path

import pytest

from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from tests.slurm.cluster_call import ClusterCall, submissions
from tests.slurm.real_slurm import RealSlurm
from tests.slurm.slow_stack import SlowStack
from tests.small_study import ANNA, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ALL = ("--protection=all", "--countermeasure=all")


def words_of(tree: StudyTree, stack: SlowStack, *more: str) -> list[str]:
    return [f"--data-root={tree.data_root}", f"--stack={stack.folder}", *more]


def statuses(tree: StudyTree) -> Counter[str]:
    return Counter(str(mark["status"]) for mark in open_tracker(tree).bookmarks().values())


@pytest.fixture
def study(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "study")


def test_a_job_sees_a_gpu_that_no_other_has_at_that_time(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2, may_end=False)
    call = ClusterCall.start(slurm, tmp_path / "log", words_of(study, stack))
    slurm.await_true(lambda: len(stack.waiting()) == 4)
    stack.let_end()
    assert call.end() == 0, call.said()
    ends = {line["cell"]: float(str(line["at"])) for line in stack.done()}
    in_use: dict[tuple[object, object], float] = {}
    for line in stack.begun():
        gpu = line["node"], line["gpu"]
        assert gpu in {("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")}
        assert in_use.get(gpu, 0.0) < float(str(line["at"]))
        in_use[gpu] = ends[line["cell"]]
    assert len(in_use) == 4


def test_without_waiting_it_leaves_and_the_same_command_submits_nothing_again(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2, may_end=False)
    words = words_of(study, stack)
    code, said = ClusterCall.run(slurm, tmp_path / "first.log", [*words, "--no-wait"])
    assert (code, "4 queued" in said) == (3, True), said
    code, said = ClusterCall.run(slurm, tmp_path / "second.log", [*words, "--dry-run"])
    assert (code, "4 queued" in said, "#SBATCH" in said) == (0, True, False), said
    stack.let_end()
    code, said = ClusterCall.run(slurm, tmp_path / "third.log", words)
    assert code == 0, said
    assert len(submissions(study)) == 1
    assert len(stack.done()) == 4


def test_no_more_run_at_a_time_than_may_also_of_several_arrays(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2)
    words = words_of(study, stack, *ALL, "--slurm-max-parallel=2")
    code, said = ClusterCall.run(slurm, tmp_path / "log", words)
    assert code == 0, said
    assert len(submissions(study)) == 2
    times = [(line["at"], 1) for line in stack.begun()] + [(line["at"], -1) for line in stack.done()]
    running = most = 0
    for _, change in sorted(times, key=lambda time: str(time[0])):
        running += change
        most = max(most, running)
    assert most <= 2


def test_a_cancelled_job_is_told_and_submitted_again(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=11, may_end=False)
    words = words_of(study, stack, f"--artist={ANNA.name}")
    call = ClusterCall.start(slurm, tmp_path / "log", words)
    slurm.await_true(lambda: bool(stack.waiting()))
    slurm.call("scancel", "-u", "root")
    assert call.end() == 1
    assert "was cancelled" in call.said()
    assert statuses(study)["interrupted"] == 1
    stack.let_end()
    code, said = ClusterCall.run(slurm, tmp_path / "again.log", words)
    assert code == 0, said
    assert len(stack.done()) == 1
    assert stack.done()[0]["first"], "it has not gone on from its checkpoint"


def test_a_job_that_is_to_stop_as_it_begins_does_not_fail(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2, may_end=False)
    call = ClusterCall.start(slurm, tmp_path / "log", words_of(study, stack, f"--artist={ANNA.name}"))
    slurm.await_true(lambda: bool(slurm.running_on("n1,n2")))
    (job,) = slurm.running_on("n1,n2")
    slurm.call("scancel", "--signal=USR2", job)
    stack.let_end()
    assert call.end() == 0, call.said()
    assert len(stack.done()) == 1


def test_a_job_that_does_not_start_is_told(slurm: RealSlurm, study: StudyTree, tmp_path: Path) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2)
    words = words_of(study, stack, f"--artist={ANNA.name}", "--slurm-extra=hold")
    code, said = ClusterCall.run(slurm, tmp_path / "log", words)
    assert code == 3
    assert re.search(r"job \d+ is pending \(JobHeldUser\), and will not start by itself", said)


def test_what_slurm_refuses_is_told_and_leaves_nothing(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2)
    for number, wrong in enumerate(("--slurm-partition=nowhere", "--slurm-gres=gpu:9", "--slurm-mem=90T")):
        code, said = ClusterCall.run(slurm, tmp_path / f"{number}.log", words_of(study, stack, wrong))
        assert code == 2, said
        assert "Slurm refuses the jobs" in said
        assert "Traceback" not in said
    assert submissions(study) == []


def test_failures_alike_end_what_has_not_begun(slurm: RealSlurm, study: StudyTree, tmp_path: Path) -> None:
    names = {artist.name for artist in study.artists(study.original_art)}
    stack = SlowStack.write(tmp_path / "slow", steps=2, failing=dict.fromkeys(names, "it burns"))
    words = words_of(study, stack, *ALL, "--slurm-max-parallel=1")
    code, said = ClusterCall.run(slurm, tmp_path / "log", words)
    assert code == 1
    assert "failed: it burns" in said
    assert "failed alike" in said
    assert statuses(study)["failed"] < 12
