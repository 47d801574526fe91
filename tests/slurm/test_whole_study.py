"""Twelve real trainings on a real Slurm end as if nothing had ended their jobs."""

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mimicry.common.files import read_json
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.folder import TRAIN_LOG
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.execution.slurm import jobs_of_study
from tests.chaos.tiny_pilot import TinyPilot, faults_of
from tests.left_behind import lives
from tests.slurm.cluster_call import ClusterCall, submissions
from tests.slurm.real_slurm import RealSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

_STEPS = 20
_REQUEUED = "Requeued job"
_TRAINER = "train_dreambooth_lora_sd3.py"


def printed(tree: StudyTree) -> str:
    """Return what all jobs have printed so far."""
    return "".join(path.read_text() for path in tree.queue("slurm").glob("*/*_log.out"))


class Held:
    """Trainings that take no more steps until they are asked to stop.

    So they last until Slurm asks them to, however fast the machine is.
    """

    def __init__(self, slurm: RealSlurm, pilot: TinyPilot, tree: StudyTree) -> None:
        self._slurm, self._pilot, self._tree = slurm, pilot, tree
        self._processes: list[psutil.Process] = []

    def step_on(self, node: str) -> bool:
        """Return whether a training on `node` has taken steps, and has others to take."""
        jobs = jobs_of_study(self._tree)
        return any(
            job.runs and job.node == node and any(1 <= step <= _STEPS // 2 for step in steps_of(folder))
            for adapter, folder in self._pilot.output_dirs(self._tree).items()
            if (job := jobs.get(adapter.key)) is not None
        )

    def hold(self, node: str) -> bool:
        """Hold what trains on `node` if something there has taken steps; return whether it did."""
        if not self.step_on(node):
            return False
        processes = self._slurm.programs_on(node, _TRAINER)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        self._processes += processes
        return bool(processes)

    def let_stop(self) -> bool:
        """Let go on what was asked to stop; return whether nothing is held any longer."""
        for process in list(self._processes):
            if not lives(process) or signal.SIGTERM in pending_signals(process.pid):
                self._processes.remove(process)
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        return not self._processes


def steps_of(folder: Path) -> list[int]:
    """Return the steps that there are checkpoints of."""
    return [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*[0-9]")]


def pending_signals(pid: int) -> set[int]:
    """Return the signals that a stopped process will get when it goes on."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return {number for number in range(1, 65) for mask in masks if mask >> (number - 1) & 1}


def limit_time(slurm: RealSlurm, jobs: Sequence[str], minutes: Callable[[str], int]) -> None:
    """Change the time limit of those of the jobs that have not ended."""

    def is_changed() -> bool:
        # Slurm refuses it for a moment while a job is put back into the queue.
        for job in slurm.jobs().intersection(jobs):
            slurm.call("scontrol", "update", f"jobid={job}", f"timelimit={minutes(job)}")
        return True

    slurm.await_true(is_changed)


def test_each_cell_is_trained_once_with_the_bytes_of_an_undisturbed_study(
    slurm: RealSlurm, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    pilot = TinyPilot.prepare(demo_dir, tmp_path, matrix=True, steps=_STEPS, parallel=2)
    tree = pilot.new_tree(tmp_path / "cluster")
    words = pilot.options(tmp_path / "cluster")

    killed = ClusterCall.start(slurm, tmp_path / "killed.log", words)
    slurm.await_true(lambda: killed.said().count("submitted ") == 2 and any(tree.lora.rglob(TRAIN_LOG)))
    killed.process.kill()
    killed.process.wait()
    again = ClusterCall.start(slurm, tmp_path / "again.log", words)
    slurm.await_true(lambda: "queued" in again.said())

    held = Held(slurm, pilot, tree)
    slurm.await_true(lambda: held.hold("n2"))
    limited = slurm.running_on("n2")
    # One or two minutes are left: Slurm sends its signal the next time that it looks, and kills nothing yet.
    limit_time(slurm, limited, lambda job: int(slurm.seconds_of(job) / 60) + 2)
    slurm.await_true(lambda: held.step_on("n1"))
    slurm.kill_node("n1")
    slurm.await_true(lambda: not slurm.running_on("n1"))
    slurm.start_node("n1")
    # Slurm looks at time limits twice a minute.
    slurm.await_true(lambda: held.let_stop() and _REQUEUED in printed(tree))
    limit_time(slurm, limited, lambda _: 60)

    slurm.await_true(lambda: held.hold("n1"))
    urgent = ("--partition=urgent", "--nodelist=n1", "--exclusive", "--mem=100", "--output=/dev/null")
    slurm.call("sbatch", *urgent, "--wrap=sleep 2")
    slurm.await_true(held.let_stop)

    assert again.end(900) == 0, again.said()
    assert len(submissions(tree)) == 2, "the second call has submitted something again"
    assert faults_of(pilot, tree) == []
    logs = [path.read_text() for path in tree.lora.rglob(TRAIN_LOG)]
    assert max(log.count("complete: ") for log in logs) == 1
    assert printed(tree).count(_REQUEUED) >= 2, "the limited and the preempted job"
    runs = [read_json(path) for path in tree.lora.rglob(TRAINING_RUN)]
    assert [run for run in runs if run["resumed_from"]], "none went on from a checkpoint"
