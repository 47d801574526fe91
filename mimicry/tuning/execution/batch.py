"""Carrying out a plan: targets go to an executor, and what becomes of them into the tracker."""

import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mimicry.common.children import Interrupted, stop_signals_held
from mimicry.common.claims import claimed_by
from mimicry.common.errors import BatchFault, ClaimedElsewhere, ClaimLost, MimicryError, report
from mimicry.common.files import utc_now
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.adapters import AdapterState
from mimicry.tuning.adapters.numerics import describe_differences
from mimicry.tuning.execution.bookmarks import complete_bookmark, log_path
from mimicry.tuning.execution.executor import Executor, Job, JobEnd
from mimicry.tuning.execution.result import SAME_FAILURES, Result, same_failure
from mimicry.tuning.execution.sharing import recheck, repair, set_aside_as_planned
from mimicry.tuning.planning import OVERWRITTEN, Plan, Target
from mimicry.tuning.progress import BatchDisplay, StepDisplay, duration, eval_change

# Between two looks at targets that others train, and at running jobs.
WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.05
# What a bookmark says of a former training: it would be taken for that of the next one.
_OF_ONE_RUN = (
    "started_at",
    "seconds",
    "steps",
    "loss",
    "eval_loss",
    "other_numerics",
    "resumed_from",
    "hub",
    "error",
)


@dataclass
class _Running:
    """A job, with what is shown and recorded of it."""

    job: Job
    label: str
    steps: StepDisplay
    started_at: str = field(default_factory=utc_now)
    began: float = field(default_factory=time.monotonic)

    @property
    def target(self) -> Target:
        return self.job.target

    def seconds(self) -> float:
        return time.monotonic() - self.began


@dataclass
class Batch:
    """A plan being carried out, beside other calls on the same tree (see `sharing`).

    With `wait`, the end is put off until the targets that others train are done.
    """

    plan: Plan
    executor: Executor
    tracker: ProgressTracker
    display: BatchDisplay
    wait: bool = True
    results: list[Result] = field(default_factory=list)
    _failures: list[str] = field(default_factory=list)
    # The bookmarks as this call left them before its first training.
    _marked: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Train all targets that are to be trained.

        Raises:
            Interrupted: a stop signal came; what was in training is marked as interrupted.
        """
        self.prepare()
        todo = self.plan.of(State.PENDING)
        labels = [
            f"[{number}/{len(todo)}] {printable(str(target.artist))}"
            for number, target in enumerate(todo, start=1)
        ]
        elsewhere = self.plan.of(State.CLAIMED)
        left = self._train(deque(zip(todo, labels, strict=True)), elsewhere)
        if same_failure(self._failures):
            self._say_given_up(left)
            return
        self._look_again(elsewhere)

    def _train(self, waiting: "deque[tuple[Target, str]]", elsewhere: list[Target]) -> int:
        """Train the targets `waiting`, each with its label; return how many are left after too many failures.

        Those that another call has claimed go into `elsewhere`.
        """
        running: list[_Running] = []
        try:
            while running or (waiting and not same_failure(self._failures)):
                while waiting and len(running) < self.executor.capacity and not same_failure(self._failures):
                    target, label = waiting.popleft()
                    if not self._submit(target, label, running):
                        self._say_claimed(target)
                        elsewhere.append(target)
                ended = [self._poll(one, running, elsewhere) for one in list(running)]
                if ended and not any(ended):
                    time.sleep(_POLL_SECONDS)
        except Interrupted as stop:
            raise self._cancel(running, stop) from None
        except BaseException:
            self._cancel(running, Interrupted(signal.SIGTERM))
            raise
        return len(waiting)

    def _submit(self, target: Target, label: str, running: list[_Running]) -> bool:
        """Hand a target to the executor; False, when another call works on it."""
        steps = StepDisplay(target.artist.name, target.step_count, position=1)

        def on_step(line: dict[str, Any]) -> None:
            steps.step(line)
            self.display.step(int(line["step"]))

        def recheck(target: Target) -> AdapterState | None:
            found = self._recheck(target)
            if found is None:
                self.display.say(f"{label}: training on {len(target.images.names)} images")
            return found

        # A signal finds the job either not begun or among those that are running.
        with stop_signals_held():
            try:
                job = self.executor.submit(target, on_step, recheck)
            except (ClaimedElsewhere, ClaimLost):
                steps.close()
                return False
            running.append(_Running(job, label, steps))
        return True

    def _poll(self, one: _Running, running: list[_Running], elsewhere: list[Target]) -> bool:
        """Look at a running job; True when it has ended."""
        try:
            end = one.job.poll()
        except ClaimLost:
            self._say_claimed(one.target)
            elsewhere.append(one.target)
            end = None
        else:
            if end is None:
                return False
        one.steps.close()
        running.remove(one)
        if end is not None:
            self.results.append(self._ended(one, end))
            self.display.advance()
        return True

    def _cancel(self, running: list[_Running], stop: Interrupted) -> Interrupted:
        """Stop all running jobs, and mark them as interrupted; return the last signal that came."""
        for one in running:
            try:
                one.job.cancel(stop.number)
            except Interrupted as hurry:  # a second Ctrl-C: nothing of the job is left all the same
                stop = hurry
            one.steps.close()
            end = one.job.poll() or JobEnd(state=State.INTERRUPTED)
            try:
                result = self._not_complete(
                    one, JobEnd(state=State.INTERRUPTED, error=f"stopped by {stop}", steps=end.steps)
                )
                self.results.append(result)
            except MimicryError as error:  # the stop signal comes first
                report(error)
        return stop

    def _look_again(self, elsewhere: list[Target]) -> None:
        """See what becomes of targets that others train, and train those that were left."""
        said = False
        while elsewhere:
            free = [target for target in elsewhere if not claimed_by(target.folder.path)]
            for target in free:
                elsewhere.remove(target)
            left = self._train(deque((target, printable(str(target.artist))) for target in free), elsewhere)
            if left:
                self._say_given_up(left + len(elsewhere))
                return
            if not elsewhere or not self.wait:
                break
            if not said:
                said = True
                for target in elsewhere:
                    self.display.say(printable(f"{target.artist}: waiting, {claimed_by(target.folder.path)}"))
                self.display.say("type --no-wait for not waiting until others are done")
            time.sleep(WAIT_SECONDS)
        self.results += [
            Result(target=target, state=State.CLAIMED, error=claimed_by(target.folder.path))
            for target in elsewhere
        ]

    def _say_given_up(self, left: int) -> None:
        self.display.say(
            f"{SAME_FAILURES} artists in a row failed alike; the other {left} are left for the next call "
            f"of the same command"
        )

    def _say_claimed(self, target: Target) -> None:
        self.display.say(
            printable(f"{target.artist}: {claimed_by(target.folder.path)}; looked at again later")
        )

    def prepare(self) -> None:
        """Record the plan in the tracker, then set aside the adapters that are to be trained again.

        Raises:
            BatchFault: the tracker cannot be written, so nothing is done.
        """
        known = self.tracker.bookmarks()
        marks = {
            target.adapter.key: mark
            for target in self.plan.targets
            if (mark := self._first_mark(target, known.get(target.adapter.key, {}))) is not None
        }
        try:
            self.tracker.record_many(marks)
        except MimicryError as error:
            raise BatchFault(*error.problems) from error
        self._marked = {**known, **marks}
        for target in self.plan.of(State.COMPLETE, State.STALE):
            mended = repair(target.folder)
            if mended:
                self.display.say(printable(f"{target.artist}: {mended}"))
        for target in self.plan.of(State.PENDING):
            aside = None if target.existing is State.PENDING else set_aside_as_planned(target)
            if aside is not None:
                self.display.say(
                    printable(f"{target.artist}: {target.existing} adapter set aside in {aside}")
                )

    def _first_mark(self, target: Target, known: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is recorded of a target before the first training; None for nothing new."""
        if target.state is State.BLOCKED:
            return {"status": State.BLOCKED, "error": target.reason}
        if target.state is State.PENDING:
            replaced = target.existing in (State.COMPLETE, State.STALE)
            note = {"note": OVERWRITTEN} if replaced else {}
            images = len(target.images.names)
            return {**dict.fromkeys(_OF_ONE_RUN), "status": State.PENDING, "images": images, **note}
        if known.get("status") == State.COMPLETE:
            return None
        return complete_bookmark(self.plan.request.tree, target.folder)

    def _recheck(self, target: Target) -> AdapterState | None:
        key = target.adapter.key
        return recheck(target, self._marked.get(key, {}), self.tracker.bookmarks().get(key, {}))

    def _ended(self, one: _Running, end: JobEnd) -> Result:
        if end.state is not State.FAILED:
            self._failures.clear()
        if end.elsewhere:
            return self._done_elsewhere(one, end)
        if end.state is State.COMPLETE:
            return self._completed(one, end.code)
        if end.state is State.FAILED:
            self._show_failure(one, end)
        elif end.state is State.BLOCKED:
            self.display.say(f"{one.label}: blocked: {end.error}")
        else:
            self.display.say(f"{one.label}: interrupted, {end.error}; the same command takes it up")
        return self._not_complete(one, end)

    def _done_elsewhere(self, one: _Running, end: JobEnd) -> Result:
        target, key = one.target, one.target.adapter.key
        result = Result(target=target, state=end.state, error=end.error)
        self.display.say(f"{one.label}: {result.word}, {end.error}")
        if end.state is State.FAILED:
            self._failures.append(end.error)
        elif self.tracker.bookmarks().get(key, {}).get("status") != State.COMPLETE:
            self.tracker.record(key, **complete_bookmark(self.plan.request.tree, target.folder))
        return result

    def _not_complete(self, one: _Running, end: JobEnd) -> Result:
        seconds = round(one.seconds(), 1)
        result = Result(target=one.target, state=end.state, seconds=seconds, error=end.error)
        self._record(
            result,
            status=end.state,
            started_at=one.started_at,
            seconds=seconds,
            steps=end.steps,
            error=end.error,
            log=log_path(self.plan.request.tree, one.target.folder),
        )
        return result

    def _completed(self, one: _Running, code: int) -> Result:
        target, seconds = one.target, one.seconds()
        mark = complete_bookmark(self.plan.request.tree, target.folder)
        if mark.get("resumed_from") is None:
            # Start and end of the programs around the training count as well.
            mark |= {"started_at": one.started_at, "seconds": round(seconds, 1)}
        hub = mark.get("hub") or {}
        loss, evaluation = mark["loss"], eval_change(mark["eval_loss"])
        numerics = describe_differences(mark["other_numerics"] or {})
        self.display.say(
            f"{one.label}: complete in {duration(seconds)}"
            + (f", mean loss {loss:.4f}" if loss is not None else "")
            + (f", {evaluation}" if evaluation else "")
            + (f", {numerics}" if numerics else "")
            + (f", uploaded to {hub['repository_id']}" if "repository_id" in hub else "")
        )
        result = Result(
            target=target,
            state=State.COMPLETE,
            trained=True,
            seconds=seconds,
            loss=loss,
            # The adapter is whole, so what went wrong came after it.
            owed=str(hub.get("error", "")) or (f"unknown, exit code {code}" if code else ""),
            evaluation=evaluation,
            numerics=numerics,
        )
        self._record(result, **mark)
        return result

    def _record(self, result: Result, **fields: Any) -> None:
        """Record a bookmark; if that fails, the batch ends, and its summary must have the result."""
        try:
            self.tracker.record(result.target.adapter.key, **fields)
        except MimicryError:
            self.results.append(result)
            raise

    def _show_failure(self, one: _Running, end: JobEnd) -> None:
        folder = one.target.folder.path
        self._failures.append(end.error.replace(str(folder), "").replace(folder.name, ""))
        self.display.say(f"{one.label}: failed: {end.error}")
        for line in end.log_lines:
            self.display.say(f"    | {line}")
