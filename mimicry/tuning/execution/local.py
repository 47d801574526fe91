"""Training on this machine, in child processes side by side: one in each place."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import IO

from mimicry.common.claims import Claim
from mimicry.common.environment import (
    IDLE_THREADS,
    THREADS,
    VISIBLE_GPUS,
    processor_count,
    typed_device,
    typed_threads,
    without_launcher,
)
from mimicry.common.errors import ClaimedElsewhere, ClaimLost, TrainingFailed, UsageError, disk_fault
from mimicry.common.hardware import Gpu, find_gpus, free_host_bytes, gpu_variables
from mimicry.common.processes import Child, running_child
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.tuning.execution.bookkeeping import JobEnd, Training
from mimicry.tuning.execution.executor import ChildJob, Executor
from mimicry.tuning.execution.outcome import Attempt, MetricsReader, StallGuard, UnrecordedTraining
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning import Target

ALL_GPUS, NO_GPUS = "all", "none"


@dataclass(frozen=True)
class Place:
    """Where one training runs at a time.

    `gpus` are the GPUs that it sees, by their names in CUDA_VISIBLE_DEVICES; None: those that this program
    sees. `threads` are those of each of its processes, None where they are not divided.
    """

    gpus: tuple[str, ...] | None = None
    threads: int | None = None

    def __str__(self) -> str:
        if not self.gpus:
            return ""
        return printable(f"GPU{'s' if len(self.gpus) > 1 else ''} {', '.join(self.gpus)}")

    def variables(self, around: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that a training here gets besides those `around` it."""
        # Threads that wait in a loop take the processors from the trainings beside them.
        found = {} if IDLE_THREADS in around else {IDLE_THREADS: "PASSIVE"}
        if self.threads is not None and typed_threads(around) is None:
            found[THREADS] = str(self.threads)
        return found if self.gpus is None else found | gpu_variables(self.gpus, around)


def choose_places(gpus: str | None, parallel: int = 1, process_count: int = 1) -> tuple[Place, ...]:
    """Return the places that --gpus and --parallel ask for; see their help.

    Args:
        process_count: processes that train an adapter together, one GPU each.

    Raises:
        UsageError: GPUs that are not there, or too few of them.
    """
    groups = _groups(gpus, process_count)
    threads = None
    if len(groups) * parallel > 1:
        threads = max(1, processor_count() // (len(groups) * parallel * process_count))
    # Each group of GPUs gets a training before one gets its second.
    return tuple(Place(group, threads) for _ in range(parallel) for group in groups)


def _groups(asked: str | None, process_count: int) -> list[tuple[str, ...] | None]:
    if asked == NO_GPUS:
        return [()]
    device = typed_device()
    if device:
        if asked is None:
            return [None]
        raise UsageError(f"--gpus {asked}: {device} names the device already; unset it, or leave --gpus out")
    found = find_gpus()
    if asked in (None, ALL_GPUS):
        names = [gpu.name for gpu in found]
        if asked is not None and not names:
            raise UsageError(f"--gpus {ALL_GPUS}: no GPU was found here; see `nvidia-smi -L`")
    else:
        names = _chosen(str(asked), found)
    if not names:
        return [None]
    if len(names) < process_count:
        raise UsageError(
            f"--num-processes {process_count} takes {process_count} GPUs for each training, and there "
            f"{'is' if len(names) == 1 else 'are'} {len(names)}: {', '.join(names)}; type --num-processes "
            f"{len(names)}, and a larger --gradient-accumulation-steps for the same samples a step"
        )
    whole = len(names) // process_count * process_count
    return [tuple(names[start : start + process_count]) for start in range(0, whole, process_count)]


def _chosen(asked: str, found: Sequence[Gpu]) -> list[str]:
    words = [word.strip() for word in asked.split(",")]
    known = {word: next((gpu.name for gpu in found if gpu.is_called(word)), None) for word in words}
    here = ", ".join(gpu.name for gpu in found) or "none; see `nvidia-smi -L`"
    if VISIBLE_GPUS in os.environ:
        here += f" ({VISIBLE_GPUS}={os.environ[VISIBLE_GPUS]})"
    problems = [
        printable(f"--gpus {asked}: {word!r} is not a GPU that this program may use; these are: {here}")
        for word, name in known.items()
        if name is None
    ]
    names = [name for word in words if (name := known[word]) is not None]
    if len(set(names)) < len(names):
        problems.append(
            f"--gpus {asked} names a GPU twice; for several trainings on each type --parallel {len(names)}"
        )
    if problems:
        raise UsageError(*problems)
    return names


# Starts the command of a target, with its log and its environment; see `start_child`.
Start = Callable[[Target, IO[bytes], Mapping[str, str]], AbstractContextManager[Child]]
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
class LocalExecutor(Executor):
    """Trains a target in each of its places, by the child that `start` starts."""

    start: Start = start_child
    places: Sequence[Place] = (Place(),)
    free_host_bytes: Callable[[], int] = free_host_bytes
    _running: "list[tuple[Place, LocalJob]]" = field(default_factory=list)
    # By recipe, seeds aside: the first training, which fetches the base model and fills the prompt cache.
    _first: "dict[TuningConfig, LocalJob]" = field(default_factory=dict)
    _obstacles: set[str] = field(default_factory=set)

    @property
    def capacity(self) -> int:
        return len(self.places)

    def leave(self, where: str) -> bool:
        """Begin no more trainings in this place; False, and nothing changes, where there is no other."""
        others = [place for place in self.places if str(place) != where]
        if others:
            self.places = others
        return bool(others)

    def submit(self, waiting: Sequence[Training]) -> "Sequence[LocalJob]":
        """Begin to train the first of them, if a place is free for it; see `Executor.submit`."""
        self._running = [(place, job) for place, job in self._running if not job.has_ended]
        free = list(self.places)
        for place, _ in self._running:
            if place in free:
                free.remove(place)
        if not free:
            return ()
        training = waiting[0]
        obstacle = self._obstacle(training.target)
        if obstacle:
            if obstacle not in self._obstacles:
                self._obstacles.add(obstacle)
                training.books.display.say(obstacle)
            return ()
        job = LocalJob(training, str(free[0]) if self.capacity > 1 else "")
        job.begin(self.start, free[0])
        self._running.append((free[0], job))
        recipe = replace(training.target.request.config, seed=0)
        first = self._first.get(recipe)
        # One that failed before its first step has prepared nothing.
        if first is None or (first.has_ended and not first.has_stepped):
            self._first[recipe] = job
        return (job,)

    def _obstacle(self, target: Target) -> str:
        begins = [job for _, job in self._running if not job.has_stepped]
        if any(job in begins for job in self._first.values()):
            return "the first training of a recipe begins alone; others follow at its first step"
        needed = target.request.stack.traits.host_bytes(target.request.stack_config)
        # Those that have not stepped may still be about to read their model.
        if self._running and self.free_host_bytes() < needed * (len(begins) + 1):
            return (
                f"the next training waits for free host memory: each reads {needed / 2**30:.1f} GiB before "
                f"its first step"
            )
        return ""


class LocalJob(ChildJob):
    """A target in training by a child process; it holds the claim to the folder until it has ended.

    `where` names its place for people.
    """

    def __init__(self, training: Training, where: str = "") -> None:
        super().__init__(training)
        self._target = training.target
        self._where = where
        self._claim: Claim | None = None
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

    def begin(self, start: Start, place: Place) -> None:
        """Start the child in `place`, if there is something to do; what forbids it becomes the end."""
        try:
            self._claim = Claim.take_anew(self._target.folder.path)
            found = self.training.recheck()
            if found is None:
                self._start(self._claim, start, place)
            else:
                self._finish(JobEnd(state=found.state, error=found.reason, elsewhere=True))
        except (ClaimedElsewhere, ClaimLost):
            self._finish(JobEnd(state=State.RUNNING))
        except BaseException:
            self._release()
            raise

    def _start(self, claim: Claim, start: Start, place: Place) -> None:
        target, folder = self._target, self._target.folder
        self.training.begun(self._where)
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
            environment = around | {"PYTHONUNBUFFERED": "1"} | claim.variable()
            self._child = self._running.enter_context(start(target, log, environment))
        except (TrainingFailed, OSError) as error:
            self._finish(self._failed(error))

    def poll(self) -> JobEnd | None:
        """See `Job.poll`; a folder that another process has taken over is RUNNING."""
        if self._end is not None or self._child is None:
            return self._end
        try:
            end = self._look(self._child)
        except ClaimLost:
            end = JobEnd(state=State.RUNNING)
        except (TrainingFailed, OSError) as error:
            end = self._failed(error)
        return None if end is None else self._finish(end)

    def _look(self, child: Child) -> JobEnd | None:
        """Return how the training ended, or None while something of it runs."""
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
        assert self._claim is not None
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
        if self._end is not None:
            return
        try:
            if self._child is not None:
                self._child.stop(number, GRACE_SECONDS)
        finally:
            with suppress(OSError, ValueError):  # the last lines are as the signal left them
                self._pass_on_metrics()
            self._finish(JobEnd(state=State.INTERRUPTED, steps=self._taken_steps()))

    def _pass_on_metrics(self) -> bool:
        lines = self._metrics.new_lines()
        for line in lines:
            self._steps = int(line["step"])
            self.training.step(line)
        return bool(lines)

    def _pass_on_phase(self) -> None:
        if self._steps or not self._guard.log_grew:
            return
        last = "".join(self._log(1))
        if last and not last.startswith(_OF_LAUNCH):
            self.training.phase(last)

    def _taken_steps(self) -> int:
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
            words = disk_fault(error) or f"{self._target.folder}: {error.strerror}"
        return JobEnd(state=State.FAILED, error=words, steps=self._taken_steps(), log_lines=self._log())

    def _log(self, count: int = _SHOWN_LOG_LINES) -> tuple[str, ...]:
        return () if self._attempt is None else tuple(self._attempt.log_lines(count))

    def _finish(self, end: JobEnd) -> JobEnd:
        try:
            self._running.close()
        finally:
            self._release()
        self._end = replace(end, where=self._where)
        return self._end

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
