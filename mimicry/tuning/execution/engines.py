"""What carries a plan out: this machine, or a Slurm cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mimicry.study import StudyTree
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.bookkeeping import Bookkeeper
from mimicry.tuning.execution.local import LocalExecutor
from mimicry.tuning.execution.places import Place
from mimicry.tuning.execution.result import Result
from mimicry.tuning.execution.slurm import SlurmSubmitter
from mimicry.tuning.execution.slurm_batch import SlurmBatch
from mimicry.tuning.execution.slurm_queue import QueuedJob, live_jobs
from mimicry.tuning.options.slurm_options import SlurmSettings
from mimicry.tuning.planning import Plan
from mimicry.tuning.progress import BatchDisplay


class AnyBatch(Protocol):
    """A plan being carried out."""

    @property
    def results(self) -> list[Result]:
        """What became of the targets so far."""

    def run(self) -> None:
        """Train all targets that are to be trained."""


class Engine(Protocol):
    """What carries plans out."""

    @property
    def workers(self) -> int:
        """How many trainings it runs at a time, for an estimate of the time left."""

    def queued(self, tree: StudyTree) -> Mapping[str, QueuedJob]:
        """Return the jobs for cells in the engine's queue that have not ended, by key."""

    def script(self, plan: Plan) -> str:
        """Return the script that it would submit for the plan; empty where it submits none."""

    def batch(self, plan: Plan, tracker: ProgressTracker, display: BatchDisplay, *, wait: bool) -> AnyBatch:
        """Return the plan as a batch to run; see its class for `wait`."""


@dataclass(frozen=True)
class LocalEngine:
    """This machine, and its places in which trainings run side by side."""

    places: tuple[Place, ...] = (Place(),)

    @property
    def workers(self) -> int:
        return len(self.places)

    def queued(self, tree: StudyTree) -> Mapping[str, QueuedJob]:
        return {}

    def script(self, plan: Plan) -> str:
        return ""

    def batch(self, plan: Plan, tracker: ProgressTracker, display: BatchDisplay, *, wait: bool) -> Batch:
        return Batch(plan, LocalExecutor(places=self.places), tracker, display, wait=wait)


@dataclass(frozen=True)
class SlurmEngine:
    """A Slurm cluster, with what each job asks it for."""

    settings: SlurmSettings

    @property
    def workers(self) -> int:
        """How many jobs may run at a time; 1 where only the cluster knows."""
        return self.settings.max_parallel or 1

    def queued(self, tree: StudyTree) -> Mapping[str, QueuedJob]:
        """Return what is in the queue of the cluster, by key.

        Raises:
            QueueUnknown: Slurm does not answer.
        """
        return live_jobs(tree)

    def script(self, plan: Plan) -> str:
        """Return what sbatch would be given.

        Raises:
            BatchFault: submitit is missing, or this machine has no Slurm.
        """
        return SlurmSubmitter(plan.call.tree, self.settings).script(plan)

    def batch(self, plan: Plan, tracker: ProgressTracker, display: BatchDisplay, *, wait: bool) -> SlurmBatch:
        books = Bookkeeper(plan, tracker, display)
        return SlurmBatch(books, SlurmSubmitter(plan.call.tree, self.settings), wait=wait)
