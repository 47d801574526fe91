"""Trainings as jobs of a real Slurm on this machine: whatever ends them, every cell is trained once."""

import re
from collections import Counter
from pathlib import Path

import pytest

from mimicry.common.files import sha256_file
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.execution.bookmarks import open_tracker
from tests.slurm.cluster_call import ClusterCall
from tests.slurm.real_slurm import RealSlurm
from tests.slurm.slow_stack import SlowStack
from tests.small_study import ANNA, BORIS, DORA, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ALL = ("--protection=all", "--countermeasure=all")


def words_of(tree: StudyTree, stack: SlowStack, *more: str) -> list[str]:
    return [f"--data-root={tree.data_root}", f"--stack={stack.folder}", *more]


def submissions(tree: StudyTree) -> list[Path]:
    return sorted(tree.slurm.glob("mimicry-*"))


def statuses(tree: StudyTree) -> Counter[str]:
    return Counter(str(mark["status"]) for mark in open_tracker(tree).bookmarks().values())


def with_checkpoint(tree: StudyTree) -> set[str]:
    """Return the cells that would go on from a checkpoint."""
    return {"/".join(path.parts[-5:-1]) for path in tree.lora.rglob("checkpoint-*")}


def checkpoint_of_new_training(slurm: RealSlurm, tree: StudyTree, stack: SlowStack, begun: int) -> bool:
    """Return whether a training on n1 that began after the first `begun` ones has written a checkpoint."""
    new = {str(line["cell"]) for line in stack.begun()[begun:] if line["node"] == "n1" and not line["first"]}
    return bool(new & with_checkpoint(tree)) and bool(slurm.running_on("n1"))


def cells(lines: list[dict[str, object]]) -> Counter[str]:
    return Counter(str(line["cell"]) for line in lines)


@pytest.fixture
def study(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "study")


def test_whatever_ends_jobs_each_of_twelve_cells_is_trained_once(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    # Slurm looks at time limits twice a minute, so Dora's have to last.
    stack = SlowStack.write(tmp_path / "slow", steps=60, steps_of={DORA.name: 450})
    words = words_of(study, stack, *ALL)
    killed = ClusterCall.start(slurm, tmp_path / "killed.log", words)
    slurm.await_true(lambda: len(submissions(study)) == 2 and len(stack.begun()) >= 3)
    killed.process.kill()
    killed.process.wait()
    again = ClusterCall.start(slurm, tmp_path / "again.log", words)
    slurm.await_true(lambda: "12 queued" in again.said())
    slurm.await_true(lambda: len(with_checkpoint(study)) == 4)

    (limited, *_) = slurm.running_on("n2")
    slurm.call("scontrol", "update", f"jobid={limited}", "timelimit=1")
    slurm.kill_node("n1")
    slurm.await_true(lambda: not slurm.running_on("n1"))
    slurm.start_node("n1")
    begun = len(stack.begun())
    slurm.await_true(lambda: checkpoint_of_new_training(slurm, study, stack, begun))
    slurm.call("sbatch", "-p", "urgent", "-w", "n1", "--exclusive", "--mem=100", "--wrap=sleep 2")

    assert again.end() == 0, again.said()
    assert cells(stack.done()) == Counter(dict.fromkeys(cells(stack.begun()), 1))
    assert len(stack.done()) == 12
    assert {line["node"] for line in stack.done()} == {"n1", "n2"}
    assert statuses(study) == {"complete": 12}
    assert len(submissions(study)) == 2, "the second call has submitted something again"
    resumed = [line for line in stack.begun() if line["first"]]
    assert len(resumed) >= 3
    printed = "".join(path.read_text() for path in study.slurm.glob("*/*_log.out"))
    assert len(re.findall("Requeued job", printed)) >= 2, "the preempted and the limited job"


def test_a_job_sees_its_own_gpu(slurm: RealSlurm, study: StudyTree, tmp_path: Path) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=30)
    code, said = ClusterCall.run(slurm, tmp_path / "log", words_of(study, stack))
    assert code == 0, said
    gpus = {(line["node"], line["gpu"]) for line in stack.begun()}
    assert gpus == {("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")}


def test_without_waiting_it_leaves_and_the_same_command_submits_nothing_again(
    slurm: RealSlurm, study: StudyTree, tmp_path: Path
) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=30)
    words = words_of(study, stack)
    code, said = ClusterCall.run(slurm, tmp_path / "first.log", [*words, "--no-wait"])
    assert (code, "4 queued" in said) == (3, True), said
    code, said = ClusterCall.run(slurm, tmp_path / "second.log", [*words, "--dry-run"])
    assert (code, "4 queued" in said, "#SBATCH" in said) == (0, True, False), said
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
    stack = SlowStack.write(tmp_path / "slow", steps=100)
    words = words_of(study, stack, f"--artist={ANNA.name}")
    call = ClusterCall.start(slurm, tmp_path / "log", words)
    slurm.await_true(lambda: bool(stack.begun()))
    slurm.call("scancel", "-u", "root")
    assert call.end() == 1
    assert "was cancelled" in call.said()
    assert statuses(study)["interrupted"] == 1
    code, said = ClusterCall.run(slurm, tmp_path / "again.log", words)
    assert code == 0, said
    assert len(stack.done()) == 1
    assert stack.done()[0]["first"], "it has not gone on from its checkpoint"


def test_a_job_that_does_not_start_is_told(slurm: RealSlurm, study: StudyTree, tmp_path: Path) -> None:
    stack = SlowStack.write(tmp_path / "slow", steps=2)
    words = words_of(study, stack, f"--artist={ANNA.name}", "--slurm-extra=hold")
    code, said = ClusterCall.run(slurm, tmp_path / "log", words)
    assert code == 3
    assert re.search(r"job \d+ is pending \(JobHeldUser\), and will not start by itself", said)
    slurm.call("scancel", "-u", "root")


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


def test_adapters_have_the_bytes_of_a_run_on_this_machine(
    slurm: RealSlurm, demo_dir: Path, tmp_path: Path
) -> None:
    words = [
        *(f"--pretrained-model-name-or-path={demo_dir / 'tiny_sd3'}", "--resolution=32", "--rank=2"),
        *("--max-train-steps=3", "--gradient-accumulation-steps=1", "--eval-timesteps=1"),
        *(f"--artist={ANNA.name}", f"--artist={BORIS.name}", f"--artist={DORA.name}"),
    ]
    found = []
    for name, cluster in (("here", False), ("there", True)):
        tree = write_study(tmp_path / name)
        code, said = ClusterCall.run(
            slurm, tmp_path / f"{name}.log", [f"--data-root={tree.data_root}", *words], cluster
        )
        assert code == 0, said
        paths = sorted(tree.lora.rglob(WEIGHTS))
        found.append({path.parent.name: sha256_file(path) for path in paths})
    assert len(found[0]) == 3
    assert found[0] == found[1]
