"""Training on this machine, in child processes side by side: one in each place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO

from mimicry.common.claims import Claim
from mimicry.common.hardware import free_host_bytes
from mimicry.common.processes import Child, running_child
from mimicry.tuning.execution.executor import Recheck, Watcher
from mimicry.tuning.execution.local_job import GRACE_SECONDS, LocalJob, Start
from mimicry.tuning.execution.places import Place
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning import Target


@contextmanager
def start_child(target: Target, log: IO[bytes], environment: Mapping[str, str]) -> Iterator[Child]:
    """Start the command of `target`; when the body ends, nothing of it is left."""
    with running_child(
        target.command, output=log, environment=environment, grace_seconds=GRACE_SECONDS
    ) as child:
        yield child


@dataclass(kw_only=True)
class LocalExecutor:
    """Trains a target in each of its places, by the child that `start` starts."""

    start: Start = start_child
    places: Sequence[Place] = (Place(),)
    free_host_bytes: Callable[[], int] = free_host_bytes
    _running: list[tuple[Place, LocalJob]] = field(default_factory=list)
    # By recipe, seeds aside: the first training, which fetches the base model and fills the prompt cache.
    _first: dict[TuningConfig, LocalJob] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        return len(self.places)

    @property
    def is_full(self) -> bool:
        return not self._free_places()

    def obstacle(self, target: Target) -> str:
        """Return why `target` has to wait: the first of a recipe begins alone, or host memory is short."""
        begins = [job for _, job in self._running_now() if not job.has_stepped]
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

    def leave(self, where: str) -> bool:
        """Begin no more trainings in this place; False, and nothing changes, where there is no other."""
        others = [place for place in self.places if str(place) != where]
        if others:
            self.places = others
        return bool(others)

    def submit(self, target: Target, watcher: Watcher, recheck: Recheck) -> LocalJob:
        """Begin to train `target`, unless another call has done so since it was planned.

        Raises:
            ClaimedElsewhere: another call works on it.
        """
        place = self._free_places()[0]
        where = str(place) if self.capacity > 1 else ""
        job = LocalJob(target, Claim.take_anew(target.folder.path), watcher, where)
        try:
            job.begin(recheck, self.start, place)
        except BaseException:
            job.release()
            raise
        self._running.append((place, job))
        recipe = replace(target.request.config, seed=0)
        first = self._first.get(recipe)
        # One that failed before its first step has prepared nothing.
        if first is None or (first.has_ended and not first.has_stepped):
            self._first[recipe] = job
        return job

    def _free_places(self) -> list[Place]:
        free = list(self.places)
        for place, _ in self._running_now():
            if place in free:
                free.remove(place)
        return free

    def _running_now(self) -> list[tuple[Place, LocalJob]]:
        self._running = [(place, job) for place, job in self._running if not job.has_ended]
        return self._running
