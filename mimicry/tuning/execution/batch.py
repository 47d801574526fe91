"""Carrying out a plan: trainings go to an executor, and what becomes of them into the books."""

import signal
import time
from collections.abc import Iterable, Sequence

from mimicry.common.claims import claimed_by
from mimicry.common.errors import MimicryError, report
from mimicry.common.processes import Interrupted, stop_signals_held
from mimicry.common.text import printable
from mimicry.study import ProgressTracker, State
from mimicry.tuning.execution.bookkeeping import SAME_FAILURES, Bookkeeper, JobEnd, Result, Training
from mimicry.tuning.execution.executor import ChildJob, Executor, Job
from mimicry.tuning.planning import BatchDisplay, Plan, Target

# Between two looks at targets that others train.
WAIT_SECONDS = 2.0


class Batch:
    """A plan being carried out, beside other calls on the same tree (see `bookkeeping`)."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        tracker: ProgressTracker,
        display: BatchDisplay,
        *,
        wait: bool = True,
    ) -> None:
        """See the orchestrator.

        Args:
            wait: for targets that others train, and for jobs that go on without this program.
        """
        self._plan = plan
        self._executor = executor
        self._display = display
        self._wait = wait
        self._waiting: list[Training] = []
        self._running: list[Job] = []
        # Targets that other calls work on; they are looked at again.
        self._claimed: list[Target] = []
        self._has_withdrawn = False
        self.books = Bookkeeper(plan, tracker, display)

    @property
    def results(self) -> list[Result]:
        """What became of the targets so far."""
        return self.books.results

    def run(self) -> None:
        """Train all targets that are to be trained.

        Raises:
            BatchFault: nothing can be trained.
            Interrupted: a stop signal came. What was in training is marked as interrupted, unless it goes on
                without this program.
        """
        self.books.prepare()
        todo = self._plan.of(State.WAITING, State.QUEUED)
        self._claimed = self._plan.of(State.RUNNING)
        self._train(
            Training(target, f"[{number}/{len(todo)}] {self._name(target)}", self.books)
            for number, target in enumerate(todo, start=1)
        )
        if not self._gives_up():
            self._look_again()

    def _train(self, trainings: Iterable[Training]) -> None:
        self._waiting = list(trainings)
        try:
            while self._running or (self._waiting and not self.books.gives_up):
                self._submit()
                if self._leaves():
                    break
                if not self._poll():
                    time.sleep(self._executor.poll_seconds)
        except BaseException as error:
            stop = error if isinstance(error, Interrupted) else Interrupted(signal.SIGTERM)
            stop = self._stop([job for job in self._running if isinstance(job, ChildJob)], stop)
            if isinstance(error, Interrupted):
                raise stop from None
            raise
        finally:
            self._leave_behind()

    def _submit(self) -> None:
        while self._waiting and not self.books.gives_up:
            # A signal finds a job either not begun or among those that run.
            with stop_signals_held():
                jobs = self._executor.submit(self._waiting)
                self._running += jobs
                for job in jobs:
                    self._waiting.remove(job.training)
            if not jobs:
                return

    def _leaves(self) -> bool:
        if not self._running or any(isinstance(job, ChildJob) for job in self._running):
            return False
        return not self._wait or (not self._waiting and all(job.is_stuck for job in self._running))

    def _poll(self) -> bool:
        self._executor.look()
        before = len(self._running)
        for job in list(self._running):
            end = job.poll()
            if end is None:
                job.training.tick()
                continue
            self._running.remove(job)
            if end.state is State.RUNNING:
                job.training.paused()
                self._claimed.append(job.training.target)
                holder = claimed_by(job.training.target.folder.path)
                self._say(f"{self._name(job.training.target)}: {holder}; looked at again later")
                continue
            self.books.ended(job.training, end)
            self._leave_bad_place(end.where)
        self._display.tick()
        self._withdraw()
        return len(self._running) < before

    def _leave_bad_place(self, where: str) -> None:
        """Use a place no more where trainings fail alike, if there are others: it would fail all targets."""
        if where and self.books.fails_always(where) and self._executor.leave(where):
            self.books.forget_failures(where)
            self._say(
                f"{where}: {SAME_FAILURES} trainings in a row failed alike; nothing more is trained there"
            )

    def _withdraw(self) -> None:
        if self._has_withdrawn or not self.books.gives_up:
            return
        count = self._executor.withdraw()
        if count:
            self._has_withdrawn = True
            self._say(
                f"{SAME_FAILURES} artists in a row failed alike; {count} jobs that had not begun are "
                f"cancelled, and {len(self._waiting)} are not submitted"
            )
            self._waiting.clear()

    def _stop(self, jobs: Sequence[ChildJob], stop: Interrupted) -> Interrupted:
        for job in jobs:
            job.ask_to_stop(stop.number)
        for number, job in enumerate(jobs, start=1):
            try:
                self._end_stopped(job, stop)
            except Interrupted as hurry:  # a second Ctrl-C: the others hurry as well
                stop = hurry
                for other in jobs[number:]:
                    other.ask_to_stop(stop.number)
        return stop

    def _end_stopped(self, job: ChildJob, stop: Interrupted) -> None:
        try:
            job.cancel(stop.number)
        finally:
            self._running.remove(job)
            end = job.poll() or JobEnd(state=State.INTERRUPTED)
            try:
                if end.elsewhere:
                    self.books.ended(job.training, end)
                elif end.state is not State.RUNNING:
                    error = f"stopped by {stop}"
                    stopped = JobEnd(state=State.INTERRUPTED, error=error, steps=end.steps)
                    self.books.stopped(job.training, stopped)
            except MimicryError as fault:  # the stop signal comes first
                report(fault)

    def _leave_behind(self) -> None:
        jobs, self._running = self._running, []
        for job in jobs:
            self.books.queued(job.training, job.remark)
        if jobs:
            self._say(self._executor.left_behind(jobs))
            if self._waiting:
                self._say(
                    f"{len(self._waiting)} are not submitted, as the queue is full; type the command again"
                )

    def _look_again(self) -> None:
        is_told = False
        while self._claimed:
            free = [target for target in self._claimed if not claimed_by(target.folder.path)]
            self._claimed = [target for target in self._claimed if target not in free]
            self._train(Training(target, self._name(target), self.books) for target in free)
            if self._gives_up():
                return
            if not self._claimed or not self._wait:
                break
            if not is_told:
                is_told = True
                for target in self._claimed:
                    self._say(f"{self._name(target)}: waiting, {claimed_by(target.folder.path)}")
                self._say("type --no-wait for not waiting until others are done")
            time.sleep(WAIT_SECONDS)
        self.books.results += [
            Result(target=target, state=State.RUNNING, error=claimed_by(target.folder.path))
            for target in self._claimed
        ]

    def _gives_up(self) -> bool:
        left = len(self._waiting) + len(self._claimed)
        if left and self.books.gives_up:
            self._say(
                f"{SAME_FAILURES} artists in a row failed alike; the other {left} are left for the next call "
                f"of the same command"
            )
        return self.books.gives_up or self._has_withdrawn

    def _name(self, target: Target) -> str:
        return printable(self._plan.name_of(target))

    def _say(self, text: str) -> None:
        self._display.say(printable(text))
