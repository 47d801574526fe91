"""A training on this machine, in a child process whose output goes to train.log."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from typing import IO

from mimicry.common.claims import Claim
from mimicry.common.environment import without_launcher
from mimicry.common.errors import ClaimLost, TrainingFailed, disk_fault
from mimicry.common.processes import Child
from mimicry.study import State
from mimicry.tuning.execution.attempt import Attempt
from mimicry.tuning.execution.executor import JobEnd, Recheck, Watcher
from mimicry.tuning.execution.places import Place
from mimicry.tuning.execution.records import UnrecordedTraining
from mimicry.tuning.execution.supervision import MetricsReader, StallGuard
from mimicry.tuning.planning import Target

# Starts the command of a target, with its log and its environment; see `start_child`.
Start = Callable[[Target, IO[bytes], Mapping[str, str]], AbstractContextManager[Child]]
# The wrapper gives its own child fifteen seconds.
GRACE_SECONDS = 20.0
_SHOWN_LOG_LINES = 12
# How the line with the command begins.
_OF_LAUNCH = "--- "


class LocalJob:
    """A target in training by a child process; it holds the claim that it was given until it has ended.

    `where` names its place for people.
    """

    def __init__(self, target: Target, claim: Claim, watcher: Watcher, where: str = "") -> None:
        self.target = target
        self._where = where
        self._claim = claim
        self._watcher = watcher
        self._steps = 0
        self._running = ExitStack()
        self._child: Child | None = None
        self._attempt: Attempt | None = None
        self._end: JobEnd | None = None
        # Once the child has ended: its exit code, and how long what it left behind may still run.
        self._code: int | None = None
        self._others_until = 0.0
        # Why it is being stopped by us.
        self._fault: TrainingFailed | None = None

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    @property
    def has_stepped(self) -> bool:
        """Whether it has taken a step, or is complete without one that was seen."""
        end = self._end
        return self._steps > 0 or (end is not None and end.state is State.COMPLETE and not end.elsewhere)

    def begin(
        self,
        recheck: Recheck,
        start: Start,
        place: Place,
    ) -> None:
        """Start the child in `place`, unless nothing is to be done; what forbids it becomes the job's end."""
        target, folder = self.target, self.target.folder
        found = recheck(target)
        if found is not None:
            self._finish(JobEnd(state=found.state, error=found.reason, elsewhere=True))
            return
        self._watcher.begun(self._where)
        try:
            self._attempt = Attempt.begin(folder)
            self._unrecorded = UnrecordedTraining.begin(target)
            self._metrics = MetricsReader(folder.metrics)
            self._guard = StallGuard(folder.log, 60 * target.request.stall_minutes)
            log = self._running.enter_context(folder.log.open("ab"))
            around, removed = without_launcher(os.environ)
            if removed:
                log.write(f"{removed}\n".encode("utf-8", "replace"))
                log.flush()
            around |= place.variables(around)
            environment = around | {"PYTHONUNBUFFERED": "1"} | self._claim.variable()
            self._child = self._running.enter_context(start(target, log, environment))
        except (TrainingFailed, OSError) as error:
            self._finish(self._failed(error))

    def poll(self) -> JobEnd | None:
        """Tell the watcher what is new; return how the job ended, or None while it runs.

        Raises:
            ClaimLost: another process has taken the folder over.
        """
        if self._end is not None or self._child is None:
            return self._end
        try:
            end = self._look(self._child)
        except ClaimLost:
            self._end = JobEnd(state=State.CLAIMED)
            self.release()
            raise
        except (TrainingFailed, OSError) as error:
            end = self._failed(error)
        return None if end is None else self._finish(end)

    def _look(self, child: Child) -> JobEnd | None:
        """Return how the training ended, or None while something of it runs.

        Raises:
            ClaimLost: another process has taken the folder over.
            TrainingFailed: it was stopped, since it stalled.
            OSError: its files cannot be read.
        """
        if self._fault is not None:
            if child.has_stopped():
                raise self._fault
            return None
        if self._code is None:
            self._code = child.wait(0.0)
            stepped = self._pass_on_metrics()
            if self._code is None:
                self._check_for_stall(child, stepped=stepped)
                return None
            # A wrapper that was killed leaves a trainer that notices, and takes a moment to end.
            child.ask_to_stop(signal.SIGTERM, GRACE_SECONDS)
            self._others_until = time.monotonic() + GRACE_SECONDS
        others = self._claim.has_others() and time.monotonic() < self._others_until
        if others or not child.has_stopped():
            return None
        self._running.close()
        self._pass_on_metrics()
        self._claim.check()
        return self._ended(self._code)

    def _check_for_stall(self, child: Child, *, stepped: bool) -> None:
        try:
            self._guard.check(stepped=stepped)
        except TrainingFailed as fault:
            self._fault = fault
            child.ask_to_stop(signal.SIGTERM, GRACE_SECONDS)
            return
        self._pass_on_phase()

    def ask_to_stop(self, number: int) -> None:
        """Send the child this signal, and return at once; see `Child.ask_to_stop`."""
        if self._child is not None and self._end is None:
            self._child.ask_to_stop(number, GRACE_SECONDS)

    def cancel(self, number: int) -> None:
        """Stop the child with this signal, unless it was asked to, and wait until nothing of it is left."""
        try:
            if self._child is not None:
                self._child.stop(number, GRACE_SECONDS)
        finally:
            with suppress(OSError, ValueError):  # the last lines are as the signal left them
                self._pass_on_metrics()
            self._finish(JobEnd(state=State.INTERRUPTED, steps=self._taken_steps()))

    def release(self) -> None:
        """Give the claim back."""
        self._claim.release()

    def _pass_on_metrics(self) -> bool:
        """Tell new lines of metrics; return whether there were any."""
        lines = self._metrics.new_lines()
        for line in lines:
            self._steps = int(line["step"])
            self._watcher.step(line)
        return bool(lines)

    def _pass_on_phase(self) -> None:
        """Tell what the training does before its first step, by the last line of its log."""
        if self._steps or not self._guard.log_grew:
            return
        last = "".join(self._log(1))
        if last and not last.startswith(_OF_LAUNCH):
            self._watcher.phase(last)

    def _taken_steps(self) -> int:
        """Return the steps that were seen, or that the trainer's record tells of: it may know of more."""
        return max(self._steps, 0 if self._attempt is None else self._attempt.steps())

    def _ended(self, code: int) -> JobEnd:
        attempt = self._attempt
        assert attempt is not None
        failure, steps = attempt.failure(code), self._taken_steps()
        if failure is None:
            self._unrecorded.record_if_missing(steps)
            return JobEnd(state=State.COMPLETE, steps=steps, code=code, warnings=attempt.warnings())
        state = State.FAILED
        if attempt.blocked:
            state = State.BLOCKED
        elif attempt.stopped_by() is not None:
            state = State.INTERRUPTED
        return JobEnd(
            state=state,
            error=failure,
            steps=steps,
            code=code,
            log_lines=self._log(),
            warnings=attempt.warnings(),
        )

    def _failed(self, error: TrainingFailed | OSError) -> JobEnd:
        self._running.close()  # what the trainer says when it is stopped belongs to the log
        words = str(error)
        if isinstance(error, OSError):
            words = disk_fault(error) or f"{self.target.folder}: {error.strerror}"
        return JobEnd(state=State.FAILED, error=words, steps=self._taken_steps(), log_lines=self._log())

    def _log(self, count: int = _SHOWN_LOG_LINES) -> tuple[str, ...]:
        return () if self._attempt is None else tuple(self._attempt.log_lines(count))

    def _finish(self, end: JobEnd) -> JobEnd:
        try:
            self._running.close()
        finally:
            self.release()
        self._end = replace(end, where=self._where)
        return self._end
