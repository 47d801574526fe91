"""Training on this machine, in child processes whose output goes to train.log."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from mimicry.common.children import Child, running_child
from mimicry.common.claims import Claim
from mimicry.common.environment import without_launcher
from mimicry.common.errors import ClaimLost, TrainingFailed, disk_fault
from mimicry.study import State
from mimicry.tuning.execution.attempt import Attempt
from mimicry.tuning.execution.executor import JobEnd, Recheck, Watcher
from mimicry.tuning.execution.records import UnrecordedTraining
from mimicry.tuning.execution.supervision import MetricsReader, StallGuard
from mimicry.tuning.planning import Target

# The wrapper gives its own child fifteen seconds.
GRACE_SECONDS = 20.0
_SHOWN_LOG_LINES = 12
# How the line with the command begins.
_OF_LAUNCH = "--- "


@contextmanager
def start_child(target: Target, log: IO[bytes], environment: Mapping[str, str]) -> Iterator[Child]:
    """Start the command of `target`; when the body ends, nothing of it is left."""
    with running_child(
        target.command, output=log, environment=environment, grace_seconds=GRACE_SECONDS
    ) as child:
        yield child


@dataclass(kw_only=True)
class LocalExecutor:
    """Trains one target at a time, by the child that `start` starts."""

    start: Callable[[Target, IO[bytes], Mapping[str, str]], AbstractContextManager[Child]] = start_child
    capacity: int = 1

    def submit(self, target: Target, watcher: Watcher, recheck: Recheck) -> "LocalJob":
        """Begin to train `target`, unless another call has done so since it was planned.

        Raises:
            ClaimedElsewhere: another call works on it.
        """
        job = LocalJob(target, Claim.take_anew(target.folder.path), watcher)
        try:
            job.begin(recheck, self.start)
        except BaseException:
            job.release()
            raise
        return job


class LocalJob:
    """A target in training by a child process; it holds the claim that it was given until it has ended."""

    def __init__(self, target: Target, claim: Claim, watcher: Watcher) -> None:
        self.target = target
        self._claim = claim
        self._watcher = watcher
        self._steps = 0
        self._running = ExitStack()
        self._child: Child | None = None
        self._attempt: Attempt | None = None
        self._end: JobEnd | None = None

    def begin(
        self,
        recheck: Recheck,
        start: Callable[[Target, IO[bytes], Mapping[str, str]], AbstractContextManager[Child]],
    ) -> None:
        """Start the child, unless there is nothing to do; what forbids it becomes the job's end."""
        target, folder = self.target, self.target.folder
        found = recheck(target)
        if found is not None:
            self._finish(JobEnd(state=found.state, error=found.reason, elsewhere=True))
            return
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
            code = self._child.wait(0.0)
            stepped = self._pass_on_metrics()
            if code is None:
                self._guard.check(stepped=stepped)
                self._pass_on_phase()
                return None
            self._running.close()
            # A wrapper that was killed leaves a trainer that notices, and takes a moment to end.
            self._claim.wait_for_others(GRACE_SECONDS)
            self._claim.check()
            end = self._ended(code)
        except ClaimLost:
            self.release()
            raise
        except (TrainingFailed, OSError) as error:
            end = self._failed(error)
        return self._finish(end)

    def cancel(self, number: int) -> None:
        """Stop the child with this signal, and wait until nothing of it is left."""
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
        self._end = end
        return end
