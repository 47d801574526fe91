"""Executors that hand trainings to the queue of a cluster, and follow what becomes of them there.

A worker is one call of apply_tuning for one adapter. It claims, looks again, trains and keeps the tracker, as
any call does; from here, only files and the queue are watched. How a training ended is what the record and
the verified adapter say, then the tracker; the queue is asked about one that had no time to say anything.
"""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault, ClaimedElsewhere, MimicryError
from mimicry.common.text import printable
from mimicry.study import NONE, State, StudyTree
from mimicry.tuning.adapters import Bookmark, QueuedJob
from mimicry.tuning.execution.bookkeeping import KEPT, JobEnd, Training, is_as_planned
from mimicry.tuning.execution.executor import Executor, Job
from mimicry.tuning.execution.outcome import MetricsReader
from mimicry.tuning.options.click_options import option_words
from mimicry.tuning.planning import Target
from mimicry.tuning.stacks import STACKS

# Between two looks at the queue, between two tries to submit to a full one, between two lines of counts.
POLL_SECONDS = 5.0
RETRY_SECONDS = 60.0
COUNT_SECONDS = 60.0
# What a worker has written is seen from here only so long after its job has ended.
SETTLE_SECONDS = 15.0


class QueueFull(MimicryError):
    """The cluster takes no more jobs for now."""


class SubmissionUnknown(MimicryError):
    """The cluster did not say whether it took the jobs."""


class QueueUnknown(MimicryError):
    """The cluster does not say what is in its queue; it may do so later."""


class ClusterExecutor(Executor):
    """Submits jobs in arrays as large as the cluster takes, and follows them and what was queued before."""

    poll_seconds = POLL_SECONDS
    # The folder below `progress/` of what is known about submissions; whoever submits holds the claim to it.
    name: str

    def __init__(self, max_parallel: int | None = None) -> None:
        self.max_parallel = max_parallel
        # What the queue held at the last look, and whether it answered then.
        self.known: Mapping[str, QueuedJob] = {}
        self.answers = True
        self._jobs: list[ClusterJob] = []
        self._waiting_count = 0
        self._complete_count = 0
        self._array_size: int | None = None
        self._last_array = ""
        self._next_try = 0.0
        self._counted_at = 0.0
        self._said = ""

    @abstractmethod
    def largest_array(self) -> int:
        """Return how many jobs may be submitted at once."""

    @abstractmethod
    def submit_array(self, targets: Sequence[Target], *, after: str = "") -> str:
        """Submit a job for each target, and return the number of their array.

        Args:
            after: the number of an array that has to end first.

        Raises:
            QueueFull: fewer jobs, or the same later, may be taken.
            SubmissionUnknown: the cluster did not answer; what is in its queue tells later.
            BatchFault: the cluster refuses them.
        """

    @abstractmethod
    def queued(self, tree: StudyTree) -> Mapping[str, QueuedJob]:
        """See `Executor.queued`."""

    @abstractmethod
    def cancel_waiting(self, jobs: Sequence[QueuedJob]) -> None:
        """Cancel those that have not begun."""

    @abstractmethod
    def how_to_cancel(self, jobs: Sequence[QueuedJob]) -> str:
        """Return the command that ends these jobs."""

    @property
    def capacity(self) -> int:
        """How many jobs may run at a time; 1 where only the cluster knows."""
        return self.max_parallel or 1

    def submit(self, waiting: Sequence[Training]) -> "Sequence[ClusterJob]":
        """Submit an array of jobs, or take what is in the queue already; see `Executor.submit`."""
        self._waiting_count = len(waiting)
        jobs = self._taken(waiting) if time.monotonic() >= self._next_try else []
        self._jobs += jobs
        self._waiting_count -= len(jobs)
        return jobs

    def _taken(self, waiting: Sequence[Training]) -> "list[ClusterJob]":
        ended = [
            ClusterJob(training, self, end=JobEnd(state=found.state, error=found.reason, elsewhere=True))
            for training, found in waiting[0].books.done_by_others(waiting)
        ]
        if ended:
            return ended
        followed = [ClusterJob(one, self) for one in waiting if one.target.state is State.QUEUED]
        if followed:
            return followed
        tree = waiting[0].target.request.tree
        try:
            claim = Claim.take_anew(tree.queue(self.name))
        except ClaimedElsewhere as error:
            raise BatchFault(f"another call is submitting now: {error}") from error
        with claim:
            try:
                known = self.queued(tree)
            except QueueUnknown as error:
                return self._put_off(error, waiting)
            # Another call may have submitted some since the plan was made.
            followed = [ClusterJob(one, self) for one in waiting if _is_live(known.get(one.key))]
            return followed or self._submitted(waiting)

    def _submitted(self, waiting: Sequence[Training]) -> "list[ClusterJob]":
        self._array_size = self._array_size or self.largest_array()
        part, books = waiting[: self._array_size], waiting[0].books
        # The throttle of an array holds for that array alone, so the next one waits for its end.
        after = "" if self.max_parallel is None else self._last_array
        while True:
            try:
                self._last_array = self.submit_array([one.target for one in part], after=after)
            except QueueFull as full:
                if len(part) == 1:
                    return self._put_off(full, waiting)
                part = part[: len(part) // 2]
                self._array_size = len(part)
                continue
            except SubmissionUnknown as error:
                books.display.say(f"{error}; the queue is looked at again later")
            else:
                count = "1 job" if len(part) == 1 else f"{len(part)} jobs"
                folder = books.plan.call.tree.queue(self.name)
                books.display.say(
                    printable(f"submitted {count}, {self._last_array}; what they print is in {folder}")
                )
            return [ClusterJob(one, self, is_ours=True) for one in part]

    def _put_off(self, fault: QueueFull | QueueUnknown, waiting: Sequence[Training]) -> "list[ClusterJob]":
        """Try again later, unless nothing of ours is in the queue that could make it full."""
        if not self._jobs:
            if isinstance(fault, QueueUnknown):
                raise fault
            raise BatchFault(f"the cluster takes no job: {fault}") from fault
        if self._next_try == 0.0:
            why = "the queue takes no more jobs for now" if isinstance(fault, QueueFull) else str(fault)
            waiting[0].books.display.say(f"{why}, and {len(waiting)} are still to come")
        self._next_try = time.monotonic() + RETRY_SECONDS
        self._array_size = None
        return []

    def look(self) -> None:
        """Ask the queue; one that does not answer is asked again at the next look."""
        if not self._jobs:
            return
        books = self._jobs[0].training.books
        try:
            self.known = self.queued(books.plan.call.tree)
        except QueueUnknown as error:
            self.answers = False
            if self._said != str(error):
                self._said = str(error)
                books.display.say(f"{error}; it is asked again")
            return
        self.answers = True
        runs = sum(job.runs for job in self._jobs)
        counts = f"{self._complete_count} complete, {runs} running, {len(self._jobs) - runs} queued"
        if self._waiting_count:
            counts += f", {self._waiting_count} not submitted yet"
        now = time.monotonic()
        if counts != self._said and now - self._counted_at >= COUNT_SECONDS:
            self._said, self._counted_at = counts, now
            books.display.say(counts)

    def forget(self, job: "ClusterJob", end: JobEnd) -> None:
        """Follow a job no longer that has ended."""
        self._jobs.remove(job)
        self._complete_count += end.state is State.COMPLETE

    def withdraw(self) -> int:
        """Cancel the jobs of this call that have not begun; return how many they are."""
        jobs = [job for job in self._jobs if job.is_ours and not job.runs]
        self.cancel_waiting([job.seen for job in jobs if job.seen is not None])
        self._waiting_count = 0
        return len(jobs)

    def left_behind(self, jobs: Sequence[Job]) -> str:
        """Say that they stay in the queue, and how to end them."""
        seen = [job.seen for job in self._jobs if job.seen is not None]
        if not seen:
            try:
                known = self.queued(jobs[0].training.target.request.tree)
                seen = [known[job.training.key] for job in jobs if job.training.key in known]
            except QueueUnknown:
                seen = []
        how = f"; {self.how_to_cancel(seen)} ends them" if seen else ""
        follows = "the same command follows them, and submits none of them again"
        return f"{len(jobs)} stay in the queue; {follows}{how}"


class ClusterJob(Job):
    """A target in the queue; `seen` is its job as it was last seen, and `is_ours` of this very call."""

    def __init__(
        self,
        training: Training,
        executor: ClusterExecutor,
        *,
        is_ours: bool = False,
        end: JobEnd | None = None,
    ) -> None:
        super().__init__(training)
        self.is_ours = is_ours
        self.seen: QueuedJob | None = None
        self._executor = executor
        self._end = end
        self._gone_at: float | None = None
        self._is_told_stuck = False
        # While it is shown.
        self._metrics: MetricsReader | None = None

    @property
    def runs(self) -> bool:
        return self.seen is not None and self.seen.runs

    def poll(self) -> JobEnd | None:
        """See `Job.poll`; while the queue does not answer, nothing is told."""
        if self._end is None and self._executor.answers:
            seen = self._executor.known.get(self.training.key)
            if seen is not None:
                self.seen, self.remark, self.is_stuck = seen, str(seen), seen.is_stuck
            if seen is not None and seen.is_live:
                self._gone_at = None
                self._watch(seen)
            else:
                self._end = self._outcome()
        if self._end is not None:
            self._executor.forget(self, self._end)
        return self._end

    def _watch(self, seen: QueuedJob) -> None:
        if seen.is_stuck and not self._is_told_stuck:
            self._is_told_stuck = True
            self.training.say(f"{seen}, and will not start by itself; {seen.remedy}")
        if not seen.runs:
            self.training.paused()
            self._metrics = None
            return
        if self._metrics is None:
            self.training.begun(str(seen))
            self._metrics = MetricsReader(self.training.target.folder.metrics)
        # One look sees several steps, which were not taken just now.
        for line in [line for line in self._metrics.new_lines() if "loss" in line][-1:]:
            self.training.step(line)

    def _outcome(self) -> JobEnd | None:
        target, now = self.training.target, time.monotonic()
        self._gone_at = self._gone_at or now
        found = target.judge()
        # What is to be replaced is good as well, until its job begins.
        if found.state in KEPT and not is_as_planned(target):
            warnings = tuple(target.folder.readable_run.warnings)
            return JobEnd(state=found.state, error=found.reason, recorded=True, warnings=warnings)
        mark = self.training.books.news(self.training.key)
        # Once it has settled, whatever the worker has written can be seen from here.
        if now - self._gone_at >= SETTLE_SECONDS or mark.status in (State.FAILED, State.BLOCKED):
            return self._failure(mark)
        return None

    def _failure(self, mark: Bookmark) -> JobEnd:
        seen, state = self.seen, State.FAILED
        error = "its job has left the queue, and left no adapter"
        if seen is not None:
            error = f"{seen}, and left no adapter"
        if mark.status in (State.FAILED, State.BLOCKED):
            state, error = mark.status, mark.error or error
        elif seen is not None and seen.was_cancelled:
            state, error = State.INTERRUPTED, f"job {seen.id} was cancelled"
        elif mark.status is State.INTERRUPTED:
            state, error = State.INTERRUPTED, f"{mark.error or 'interrupted'}; {error}"
        log = None if seen is None else seen.log(self.training.target.request.tree)
        # What it printed may say what no record does.
        printed = str(log) if log is not None and log.exists() else ""
        return JobEnd(state=state, error=error, recorded=True, log=printed)


def worker_words(target: Target, python: str) -> list[str]:
    """Return the command that trains `target` on a node: one call of apply_tuning for one cell.

    Every hyper-parameter is explicit, so that a study.toml that is changed meanwhile changes nothing.
    """
    request, artist, condition = target.request, target.artist, target.request.condition
    stack = request.stack
    words = [
        *(python, "-m", "mimicry.tuning.apply_tuning", "--engine=local", "--study=none", "--no-wait"),
        f"--data-root={request.tree.data_root.absolute()}",
        f"--stack={stack.name if stack.folder.parent == STACKS else stack.folder}",
        f"--variant={request.variant or NONE}",
        f"--protection={condition.protection}",
        f"--countermeasure={condition.countermeasure}",
        *(f"--split={artist.split}", f"--style={artist.style}", f"--artist={artist.name}"),
        f"--min-samples-per-artist={request.min_samples_per_artist}",
        f"--stall-minutes={request.stall_minutes:g}",
    ]
    if stack.takes_options:
        words += option_words(request.config)
    if request.hub is None or not request.uploads:
        words.append("--no-push-to-hub")
    else:
        words += ["--push-to-hub", *request.hub.words()]
    if request.train_script is not None:
        words.append(f"--train-script={request.train_script}")
    # In an --overwrite of several, the others still have the old recipe when the first is trained.
    flags = {
        "--retrain-stale": request.retrain_stale or request.overwrite,
        "--allow-mixed-recipes": request.allow_mixed_recipes,
        "--allow-unpaired": request.allow_unpaired,
    }
    return [*words, *(flag for flag, given in flags.items() if given)]


def _is_live(job: QueuedJob | None) -> bool:
    return job is not None and job.is_live
