"""Twelve real trainings on a real Slurm end as if nothing had ended their jobs."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from mimicry.common.files import read_json
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.folder import TRAIN_LOG
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.execution.slurm import jobs_of_study
from tests.chaos.tiny_pilot import TinyPilot, faults_of
from tests.slurm.cluster_call import ClusterCall, submissions
from tests.slurm.real_slurm import RealSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

_STEPS = 40
_REQUEUED = "Requeued job"


def printed(tree: StudyTree) -> str:
    """Return what all jobs have printed so far."""
    return "".join(path.read_text() for path in tree.queue("slurm").glob("*/*_log.out"))


def steps_on(node: str, pilot: TinyPilot, tree: StudyTree) -> bool:
    """Return whether a training on `node` has written a checkpoint."""
    jobs = jobs_of_study(tree)
    return any(
        job.runs and job.node == node and any(folder.glob("checkpoint-*"))
        for adapter, folder in pilot.output_dirs(tree).items()
        if (job := jobs.get(adapter.key)) is not None
    )


def hit_time_limits(slurm: RealSlurm, tree: StudyTree) -> None:
    """Let what runs on n2 meet its time limit until a job was put back into the queue for it.

    Slurm looks at time limits twice a minute.
    """
    limited: set[str] = set()

    def was_hit() -> bool:
        for job in slurm.running_on("n2"):
            slurm.call("scontrol", "update", f"jobid={job}", "timelimit=1")
            limited.add(job)
        return _REQUEUED in printed(tree)

    slurm.await_true(was_hit)
    for job in limited:
        with suppress(subprocess.CalledProcessError):  # it may have ended
            slurm.call("scontrol", "update", f"jobid={job}", "timelimit=60")


def test_each_cell_is_trained_once_with_the_bytes_of_an_undisturbed_study(
    slurm: RealSlurm, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    pilot = TinyPilot.prepare(demo_dir, tmp_path, matrix=True, steps=_STEPS, parallel=2)
    tree = pilot.new_tree(tmp_path / "cluster")
    words = pilot.options(tmp_path / "cluster")

    killed = ClusterCall.start(slurm, tmp_path / "killed.log", words)
    slurm.await_true(lambda: len(submissions(tree)) == 2 and len(list(tree.lora.rglob(TRAIN_LOG))) >= 3)
    killed.process.kill()
    killed.process.wait()
    again = ClusterCall.start(slurm, tmp_path / "again.log", words)
    slurm.await_true(lambda: "12 queued" in again.said())

    hit_time_limits(slurm, tree)
    slurm.await_true(lambda: steps_on("n1", pilot, tree))
    slurm.kill_node("n1")
    slurm.await_true(lambda: not slurm.running_on("n1"))
    slurm.start_node("n1")
    slurm.await_true(lambda: steps_on("n1", pilot, tree))
    urgent = ("--partition=urgent", "--nodelist=n1", "--exclusive", "--mem=100", "--output=/dev/null")
    slurm.call("sbatch", *urgent, "--wrap=sleep 2")

    assert again.end() == 0, again.said()
    assert len(submissions(tree)) == 2, "the second call has submitted something again"
    assert faults_of(pilot, tree) == []
    logs = [path.read_text() for path in tree.lora.rglob(TRAIN_LOG)]
    assert max(log.count("complete: ") for log in logs) == 1
    assert printed(tree).count(_REQUEUED) >= 2, "the limited and the preempted job"
    runs = [read_json(path) for path in tree.lora.rglob(TRAINING_RUN)]
    assert [run for run in runs if run["resumed_from"]], "none went on from a checkpoint"
