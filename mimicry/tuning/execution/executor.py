"""What every executor offers to the batch: where and how trainings run.

An executor trains on this machine, in the queue of a cluster, or anywhere else; the batch is the same. The
worker that trains holds the claim to the adapter's folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from mimicry.study import StudyTree
from mimicry.tuning.adapters.inspect import QueuedJob
from mimicry.tuning.execution.bookkeeping import JobEnd, Training
from mimicry.tuning.planning import Plan


class Job(ABC):
    """A training that an executor has taken on, and that goes on without this program."""

    # Whether it will not begin by itself.
    is_stuck = False
    # How it is, for people; empty where that is not known.
    remark = ""

    def __init__(self, training: Training) -> None:
        self.training = training

    @abstractmethod
    def poll(self) -> JobEnd | None:
        """Tell the training what is new; return how the job ended, or None while it goes on. Does not wait.

        A target that another call works on ends as RUNNING.
        """


class ChildJob(Job):
    """A job that ends with this program."""

    @abstractmethod
    def ask_to_stop(self, number: int) -> None:
        """Send the job this signal, and return at once. Asked again, it hurries."""

    @abstractmethod
    def cancel(self, number: int) -> None:
        """Stop the job with this signal, unless it was asked to, and wait until nothing of it is left.

        Raises:
            Interrupted: a stop signal came meanwhile; nothing of the job is left all the same.
        """


class Executor(ABC):
    """Trains targets."""

    # Between two looks at jobs.
    poll_seconds = 0.05

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many trainings run at a time, for an estimate of the time left."""

    @abstractmethod
    def submit(self, waiting: Sequence[Training]) -> Sequence[Job]:
        """Take on some of those that wait, the first ones first; none when nothing can begin now.

        It is called again at once after it has taken some, else after the next look at the jobs. A signal to
        stop is held back meanwhile. While no job runs, it takes one or raises an error.

        Raises:
            BatchFault: nothing can be trained.
        """

    def look(self) -> None:
        """Learn how the jobs are; called before each is polled."""
        return

    def withdraw(self) -> int:
        """Take back the jobs of this call that have not begun; return how many they are."""
        return 0

    def leave(self, where: str) -> bool:
        """Begin no more jobs in this place; False, and nothing changes, where there is no other."""
        return False

    def left_behind(self, jobs: Sequence[Job]) -> str:
        """Return what to say of jobs that go on without this program."""
        return f"{len(jobs)} go on"

    def queued(self, tree: StudyTree) -> Mapping[str, QueuedJob]:
        """Return the jobs of a study that are known, by the key of the adapter, those that have ended too.

        Raises:
            QueueUnknown: the queue does not answer.
        """
        return {}

    def describe(self, plan: Plan) -> str:
        """Return what would be submitted for the plan, for a dry run. Writes nothing.

        Raises:
            BatchFault: nothing can be submitted from here.
        """
        return ""
