"""Carrying out a plan: targets go to an executor, and what becomes of them into the tracker."""

import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.common.errors import ClaimedElsewhere, ClaimLost, MimicryError, report
from mimicry.common.processes import Interrupted, stop_signals_held
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.execution.bookkeeping import Bookkeeper, Training
from mimicry.tuning.execution.executor import Executor, Job, JobEnd
from mimicry.tuning.execution.result import SAME_FAILURES, Result
from mimicry.tuning.planning import Plan, Target
from mimicry.tuning.planning.display import BatchDisplay, StepDisplay

# Between two looks at targets that others train, and at running jobs.
WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class _Shown:
    """Shows how a training goes: its own display, and its part in that of the batch."""

    training: Training
    books: Bookkeeper
    display: BatchDisplay
    steps: StepDisplay

    @property
    def key(self) -> str:
        return self.training.target.adapter.key

    def begun(self, where: str) -> None:
        self.books.say_begun(self.training, where)

    def phase(self, text: str) -> None:
        self.steps.phase(text)

    def step(self, line: dict[str, Any]) -> None:
        self.steps.step(line)
        self.display.step(self.key, int(line["step"]))


@dataclass
class _Running:
    """A job, with its training as it is recorded, its steps as they are shown, and the line of its bar."""

    job: Job
    training: Training
    steps: StepDisplay
    position: int


class Batch:
    """A plan being carried out, beside other calls on the same tree (see `sharing`)."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        tracker: ProgressTracker,
        display: BatchDisplay,
        *,
        wait: bool = True,
    ) -> None:
        """See the orchestrator; with `wait`, the end is put off until targets that others train are done."""
        self._plan = plan
        self._executor = executor
        self._display = display
        self._wait = wait
        self._said: set[str] = set()
        self.books = Bookkeeper(plan, tracker, display)

    @property
    def results(self) -> list[Result]:
        """What became of the targets so far."""
        return self.books.results

    def run(self) -> None:
        """Train all targets that are to be trained.

        Raises:
            Interrupted: a stop signal came; what was in training is marked as interrupted.
        """
        self.books.prepare()
        todo = self._plan.of(State.PENDING)
        labels = [
            f"[{number}/{len(todo)}] {printable(self._plan.name_of(target))}"
            for number, target in enumerate(todo, start=1)
        ]
        elsewhere = self._plan.of(State.CLAIMED)
        left = self._train(deque(zip(todo, labels, strict=True)), elsewhere)
        if self.books.gives_up:
            self._say_given_up(left)
            return
        self._look_again(elsewhere)

    def _train(self, waiting: "deque[tuple[Target, str]]", elsewhere: list[Target]) -> int:
        """Train the targets `waiting`, each with its label; return how many are left after too many failures.

        Those that another call has claimed go into `elsewhere`.
        """
        running: list[_Running] = []
        try:
            while running or (waiting and not self.books.gives_up):
                while waiting and not self.books.gives_up and self._may_begin(waiting[0][0]):
                    target, label = waiting.popleft()
                    if not self._submit(target, label, running):
                        self._say_claimed(target)
                        elsewhere.append(target)
                ended = [self._poll(one, running, elsewhere) for one in list(running)]
                if not any(ended):
                    time.sleep(_POLL_SECONDS)
        except Interrupted as stop:
            raise self._cancel(running, stop) from None
        except BaseException:
            self._cancel(running, Interrupted(signal.SIGTERM))
            raise
        return len(waiting)

    def _may_begin(self, target: Target) -> bool:
        """Return whether the executor takes `target` now; why it does not although it is not full is said."""
        if self._executor.is_full:
            return False
        obstacle = self._executor.obstacle(target)
        if obstacle and obstacle not in self._said:
            self._said.add(obstacle)
            self._display.say(obstacle)
        return not obstacle

    def _submit(self, target: Target, label: str, running: list[_Running]) -> bool:
        """Hand a target to the executor; False, when another call works on it."""
        # Above the bars of trainings is that of the batch.
        taken = {one.position for one in running}
        position = next(line for line in count(1) if line not in taken)
        steps = StepDisplay(self._plan.short_name_of(target), target.step_count, position)
        training = Training(target, label)
        shown = _Shown(training, self.books, self._display, steps)
        # A signal finds the job either not begun or among those that are running.
        with stop_signals_held():
            self._display.begin(shown.key, target.step_count)
            try:
                job = self._executor.submit(target, shown, self.books.recheck)
            except (ClaimedElsewhere, ClaimLost):
                steps.close()
                self._display.end(shown.key, well=False)
                return False
            running.append(_Running(job, training, steps, position))
        return True

    def _poll(self, one: _Running, running: list[_Running], elsewhere: list[Target]) -> bool:
        """Look at a running job; True when it has ended."""
        end: JobEnd | None = None
        try:
            end = one.job.poll()
            if end is None:
                one.steps.tick()
                self._display.tick()
                return False
        except ClaimLost:
            self._say_claimed(one.job.target)
            elsewhere.append(one.job.target)
        one.steps.close()
        running.remove(one)
        well = end is not None and end.state is State.COMPLETE and not end.elsewhere
        self._display.end(one.job.target.adapter.key, well=well)
        if end is not None:
            self.books.ended(one.training, end)
            self._leave_bad_place(end.where)
        return True

    def _leave_bad_place(self, where: str) -> None:
        """Use a place no more where trainings fail alike, if there are others: it would fail all targets."""
        if where and self.books.fails_always(where) and self._executor.leave(where):
            self.books.forget_failures(where)
            self._display.say(
                f"{where}: {SAME_FAILURES} trainings in a row failed alike; nothing more is trained there"
            )

    def _cancel(self, running: list[_Running], stop: Interrupted) -> Interrupted:
        """Stop all running jobs side by side, and mark them as interrupted; return the last signal."""
        self._ask_to_stop(running, stop)
        for number, one in enumerate(running, start=1):
            try:
                self._end_cancelled(one, stop)
            except Interrupted as hurry:  # a second Ctrl-C: the others hurry as well
                stop = hurry
                self._ask_to_stop(running[number:], stop)
        return stop

    def _end_cancelled(self, one: _Running, stop: Interrupted) -> None:
        """Wait until nothing of a job is left that was asked to stop, and mark it as interrupted."""
        try:
            one.job.cancel(stop.number)
        finally:
            one.steps.close()
            end = one.job.poll() or JobEnd(state=State.INTERRUPTED)
            try:
                interrupted = JobEnd(state=State.INTERRUPTED, error=f"stopped by {stop}", steps=end.steps)
                self.books.not_complete(one.training, interrupted)
            except MimicryError as error:  # the stop signal comes first
                report(error)

    def _ask_to_stop(self, running: Sequence[_Running], stop: Interrupted) -> None:
        for one in running:
            one.job.ask_to_stop(stop.number)

    def _look_again(self, elsewhere: list[Target]) -> None:
        """See what becomes of targets that others train, and train those that were left."""
        said = False
        while elsewhere:
            free = [target for target in elsewhere if not claimed_by(target.folder.path)]
            for target in free:
                elsewhere.remove(target)
            left = self._train(
                deque((target, printable(self._plan.name_of(target))) for target in free), elsewhere
            )
            if left:
                self._say_given_up(left + len(elsewhere))
                return
            if not elsewhere or not self._wait:
                break
            if not said:
                said = True
                for target in elsewhere:
                    self._display.say(
                        printable(f"{self._plan.name_of(target)}: waiting, {claimed_by(target.folder.path)}")
                    )
                self._display.say("type --no-wait for not waiting until others are done")
            time.sleep(WAIT_SECONDS)
        self.books.results += [
            Result(target=target, state=State.CLAIMED, error=claimed_by(target.folder.path))
            for target in elsewhere
        ]

    def _say_given_up(self, left: int) -> None:
        self._display.say(
            f"{SAME_FAILURES} artists in a row failed alike; the other {left} are left for the next call "
            f"of the same command"
        )

    def _say_claimed(self, target: Target) -> None:
        self._display.say(
            printable(
                f"{self._plan.name_of(target)}: {claimed_by(target.folder.path)}; looked at again later"
            )
        )
