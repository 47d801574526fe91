"""Batches whose trainings are staged alike on three executors: this machine, Slurm's stand-in, threads."""

import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from mimicry.common.claims import Claim
from mimicry.common.errors import ClaimedElsewhere, TrainingFailed
from mimicry.common.processes import Interrupted
from mimicry.study.tree import Artist, State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.execution.batch import WAIT_SECONDS, Batch
from mimicry.tuning.execution.bookkeeping import JobEnd, Training
from mimicry.tuning.execution.executor import ChildJob, Executor
from mimicry.tuning.execution.outcome import Attempt
from mimicry.tuning.execution.slurm import SlurmExecutor
from mimicry.tuning.execution.slurm_task import SlurmTask
from mimicry.tuning.options.slurm_options import SlurmSettings
from mimicry.tuning.planning.display import BatchDisplay
from mimicry.tuning.planning.plan import Plan, training_of
from tests.small_study import bookmarks_in, plan_of
from tests.tuning.fake_slurm import FakeSlurm, FakeSubmitit
from tests.tuning.staged_batch import Ending, StagedExecutor, succeed

Action = Callable[[], object]


class Stage(Protocol):
    """Where batches run whose trainings end as `endings` say by artist, else well.

    `trained` are the artists in the order in which their trainings began, and `bookmarks_before` are those
    at that time. `meanwhile` happens when the batch waits for other calls, `at_look` when it waits for its
    jobs; both once.
    """

    tree: StudyTree
    endings: dict[Artist, Ending]
    trained: list[Artist]
    bookmarks_before: list[dict[str, dict[str, Any]]]
    meanwhile: Action | None
    at_look: Action | None

    def executor(self) -> Executor: ...

    def sleep(self, seconds: float) -> None:
        """Let time pass for the batch."""


@dataclass
class LocalStage:
    tree: StudyTree
    endings: dict[Artist, Ending] = field(default_factory=dict)
    trained: list[Artist] = field(default_factory=list)
    bookmarks_before: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    meanwhile: Action | None = None
    at_look: Action | None = None

    def executor(self) -> Executor:
        return StagedExecutor(
            tree=self.tree,
            endings=self.endings,
            trained=self.trained,
            bookmarks_before=self.bookmarks_before,
        )

    def sleep(self, seconds: float) -> None:
        if seconds == WAIT_SECONDS:
            action, self.meanwhile = self.meanwhile, None
        else:
            action, self.at_look = self.at_look, None
        if action is not None:
            action()


class ThreadJob(ChildJob):
    """A training in a thread of this process, which the thread claims for."""

    def __init__(self, training: Training, stage: Stage) -> None:
        super().__init__(training)
        self.end: JobEnd | None = None
        self._lines: list[dict[str, Any]] = []
        self._code: int | None = None
        self._fault = ""
        self._steps = 0
        self._stops = threading.Event()
        try:
            self._claim = Claim.take_anew(training.target.folder.path)
        except ClaimedElsewhere:
            self.end = JobEnd(state=State.RUNNING)
            return
        found = training.recheck()
        if found is not None:
            self._finish(JobEnd(state=found.state, error=found.reason, elsewhere=True))
            return
        stage.trained.append(training.target.artist)
        stage.bookmarks_before.append(bookmarks_in(stage.tree))
        training.begun()
        self._attempt = Attempt.begin(training.target.folder)
        ending = stage.endings.get(training.target.artist, succeed)
        self._thread = threading.Thread(target=self._train, args=(ending,))
        self._thread.start()

    def _train(self, ending: Ending) -> None:
        try:
            while self._code is None and not self._stops.is_set():
                self._code = ending(self.training.target, self._lines.append)
        except (TrainingFailed, Interrupted) as fault:
            self._fault = str(fault)

    def poll(self) -> JobEnd | None:
        if self.end is None:
            has_ended = not self._thread.is_alive()
            while self._lines:
                self._steps = int(self._lines[0]["step"])
                self.training.step(self._lines.pop(0))
            if has_ended:
                self._finish(self._outcome())
        return self.end

    def _outcome(self) -> JobEnd:
        failure = self._fault or self._attempt.failure(self._code or 0)
        state = State.COMPLETE if failure is None else State.FAILED
        return JobEnd(state=state, error=failure or "", code=self._code or 0, steps=self._steps)

    def _finish(self, end: JobEnd) -> None:
        self._claim.release()
        self.end = end

    def ask_to_stop(self, number: int) -> None:
        self._stops.set()

    def cancel(self, number: int) -> None:
        if self.end is None:
            self._stops.set()
            self._thread.join()
            self._finish(JobEnd(state=State.INTERRUPTED))


@dataclass
class ThreadExecutor(Executor):
    """The smallest executor: a training at a time, in a thread."""

    stage: Stage
    _jobs: list[ThreadJob] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, waiting: Sequence[Training]) -> Sequence[ThreadJob]:
        if self._jobs and self._jobs[-1].end is None:
            return ()
        self._jobs.append(ThreadJob(waiting[0], self.stage))
        return self._jobs[-1:]


@dataclass
class ThreadStage(LocalStage):
    def executor(self) -> Executor:
        return ThreadExecutor(self)

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(0.002)
        super().sleep(seconds)


@dataclass
class SlurmStage(LocalStage):
    """Slurm's stand-in. From one look of the batch to the next a job begins to run, or ends.

    What runs does what a worker does on its node: it carries out a plan for its cell.
    """

    slurm: FakeSlurm = field(kw_only=True)
    submitit: FakeSubmitit = field(kw_only=True)
    clock: float = 1000.0
    _states: dict[str, str] = field(default_factory=dict)
    _is_worker: bool = False

    def executor(self) -> Executor:
        return SlurmExecutor(SlurmSettings())

    def sleep(self, seconds: float) -> None:
        if self._is_worker:
            return
        self.clock += seconds
        super().sleep(seconds)
        jobs = {
            f"{number}_{index}": (self.submitit.parameters[number - 1]["job_name"], index, task)
            for number, tasks in enumerate(self.submitit.submitted, start=1)
            for index, task in enumerate(tasks)
        }
        for job in jobs:
            self._states.setdefault(job, "PENDING")
        for job in {word for call in self.slurm.calls("scancel") for word in call.split()} & jobs.keys():
            if self._states[job] == "PENDING":
                self._states[job] = "CANCELLED"
        running = [job for job, state in self._states.items() if state == "RUNNING"]
        waiting = [job for job, state in self._states.items() if state == "PENDING"]
        if running:
            self._states[running[0]] = self._work(jobs[running[0]][2])
        elif waiting:
            self._states[waiting[0]] = "RUNNING"
        self.slurm.show(
            *(
                f"{name}|{job.partition('_')[0]}|{index}|{self._states[job]}|n1|None"
                for job, (name, index, _) in jobs.items()
            )
        )

    def _work(self, task: SlurmTask) -> str:
        """Train as apply_tuning does on a node; return how the job has ended."""
        artist = Artist(*task.folder.parts[-3:])
        replaces = task.replaces is not None and training_of(AdapterFolder(task.folder)) == task.replaces
        retrains = "--retrain-stale" in task.words
        plan = plan_of(self.tree, artists=(artist.name,), overwrite=replaces, retrain_stale=retrains)
        self._is_worker = True
        try:
            with (self.tree.data_root / "worker.log").open("a") as log, redirect_stdout(log):
                display = BatchDisplay([2])
                batch = Batch(plan, super().executor(), open_tracker(self.tree), display, wait=False)
                batch.run()
        finally:
            self._is_worker = False
        return "COMPLETED" if all(result.trained for result in batch.results) else "FAILED"


@contextmanager
def staged(kind: str, tree: StudyTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Yield a stage: "this machine", "slurm" or "threads"."""
    stage: LocalStage
    if kind == "slurm":
        slurm = FakeSlurm.install(tmp_path / "bin", monkeypatch)
        stage = SlurmStage(tree, slurm=slurm, submitit=FakeSubmitit().install(monkeypatch))
        clock = types.SimpleNamespace(monotonic=lambda: stage.clock)
        monkeypatch.setattr("mimicry.tuning.execution.cluster.time", clock)
    else:
        stage = LocalStage(tree) if kind == "this machine" else ThreadStage(tree)
    monkeypatch.setattr("mimicry.tuning.execution.batch.time", types.SimpleNamespace(sleep=stage.sleep))
    yield stage


def batch_on(stage: Stage, plan: Plan, *, wait: bool = True) -> Batch:
    display = BatchDisplay([2] * len(plan.targets))
    return Batch(plan, stage.executor(), open_tracker(stage.tree), display, wait=wait)
