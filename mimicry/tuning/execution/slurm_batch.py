"""A plan that is carried out by a Slurm cluster: jobs are submitted, followed, and their outcome is told.

The worker on the node claims, looks again, trains and keeps the tracker, as any call of apply_tuning does.
This call only watches files and the queue. The outcome is what the record and the verified adapter say.
"""

import time
from collections.abc import Sequence

from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault, ClaimedElsewhere
from mimicry.common.processes import Interrupted, stop_signals_held
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.tuning.execution.bookkeeping import Bookkeeper
from mimicry.tuning.execution.result import SAME_FAILURES, Result, same_failure
from mimicry.tuning.execution.slurm import QueueFull, SlurmSubmitter, SubmissionUnknown
from mimicry.tuning.execution.slurm_followed import Followed
from mimicry.tuning.execution.slurm_outcome import Outcomes
from mimicry.tuning.execution.slurm_queue import QueuedJob, QueueUnknown, cancel_jobs, jobs_of_study
from mimicry.tuning.planning import Target

# Between two looks at the queue, between two tries to submit to a full one, between two lines of counts.
POLL_SECONDS = 5.0
RETRY_SECONDS = 60.0
_COUNT_SECONDS = 60.0
# What a node has written is seen from here only so long after its job has ended.
SETTLE_SECONDS = 15.0


class SlurmBatch:
    """A plan being carried out by a cluster."""

    def __init__(self, books: Bookkeeper, submitter: SlurmSubmitter, *, wait: bool = True) -> None:
        """See the orchestrator; without `wait`, it ends when everything is in the queue."""
        self.books = books
        self.results: list[Result] = []
        self._submitter = submitter
        self._wait = wait
        self._outcomes = Outcomes(books)
        self._tree = books.plan.call.tree
        self._followed: list[Followed] = []
        self._waiting: list[Target] = []
        self._failures: list[str] = []
        self._last_array = ""
        self._next_try = 0.0
        self._said_at = 0.0
        self._said = ""

    def run(self) -> None:
        """Submit what is to be trained, and follow it and what was in the queue before.

        Raises:
            BatchFault: Slurm refuses the jobs.
            Interrupted: a stop signal came; the jobs stay in the queue.
        """
        self.books.prepare()
        self._waiting = self.books.plan.of(State.PENDING)
        self._follow(self.books.plan.of(State.QUEUED), submitted=False)
        try:
            self._submit()
            while self._wait and (self._followed or self._waiting):
                if not self._look():
                    break
                if self._waiting and time.monotonic() >= self._next_try:
                    self._submit()
                if self._followed or self._waiting:
                    time.sleep(POLL_SECONDS)
        except Interrupted:
            self._say_left()
            raise
        finally:
            for one in self._followed:
                one.hide(self.books.display)
            self.results += [self._queued_result(one) for one in self._followed]
        if self._waiting:
            self._say(f"{len(self._waiting)} are not submitted, as the queue is full; type the command again")
        if not self._wait and self._followed:
            self._say_left()

    def _submit(self) -> None:
        """Submit what waits, in arrays as large as the cluster takes."""
        if not self._waiting:
            return
        try:
            claim = Claim.take_anew(self._tree.slurm)
        except ClaimedElsewhere as error:
            raise BatchFault(f"another call is submitting now: {error}") from error
        with claim:
            known = jobs_of_study(self._tree)
            meanwhile = [target for target in self._waiting if _is_live(known.get(target.adapter.key))]
            self._follow(meanwhile, submitted=False)
            self._waiting = [target for target in self._waiting if target not in meanwhile]
            size = self._submitter.largest_array()
            while self._waiting:
                part = self._waiting[:size]
                try:
                    self._submit_array(part)
                except QueueFull as full:
                    if len(part) > 1:
                        size = len(part) // 2
                        continue
                    self._put_off(full)
                    return
                except SubmissionUnknown as error:
                    self._say(f"{error}; the queue is looked at again later")
                    self._follow(part, submitted=True)
                    self._waiting = self._waiting[len(part) :]

    def _submit_array(self, part: Sequence[Target]) -> None:
        limit = self._submitter.settings.max_parallel
        # The throttle of an array holds for that array alone, so the next one waits for its end.
        after = self._last_array if limit is not None else ""
        with stop_signals_held():
            array = self._submitter.submit(part, after=after)
            self._last_array = array
            self._waiting = self._waiting[len(part) :]
            self._follow(part, submitted=True)
        count = "1 job" if len(part) == 1 else f"{len(part)} jobs"
        self._say(f"submitted {count}, {array}; what they print is in {self._tree.slurm}")

    def _put_off(self, full: QueueFull) -> None:
        """Try again later, unless nothing of ours is in the queue that could make it full.

        Raises:
            BatchFault: Slurm takes not even one job.
        """
        if not self._followed:
            raise BatchFault(f"Slurm takes no job: {full}") from full
        if self._next_try == 0.0:
            self._say(f"the queue takes no more jobs for now, and {len(self._waiting)} are still to come")
        self._next_try = time.monotonic() + RETRY_SECONDS

    def _follow(self, targets: Sequence[Target], *, submitted: bool) -> None:
        self._followed += [
            Followed(target, printable(self.books.plan.name_of(target)), submitted) for target in targets
        ]

    def _look(self) -> bool:
        """See how the jobs are; False when none of them will end by itself."""
        try:
            jobs = jobs_of_study(self._tree)
        except QueueUnknown as error:
            if self._said != str(error):
                self._said = str(error)
                self._say(f"{error}; it is asked again")
            return True
        for one in list(self._followed):
            one.job = jobs.get(one.target.adapter.key, one.job)
            live = _is_live(jobs.get(one.target.adapter.key))
            if live:
                one.gone_at = None
                self._watch(one)
            else:
                self._maybe_end(one)
        self._give_up_on_failures()
        self._say_counts()
        stuck = [one for one in self._followed if one.is_stuck]
        return not stuck or len(stuck) < len(self._followed) or bool(self._waiting)

    def _watch(self, one: Followed) -> None:
        """Tell how a live job is getting on."""
        display, job = self.books.display, one.job
        assert job is not None
        if one.is_stuck and not one.is_said_to_be_stuck:
            one.is_said_to_be_stuck = True
            self._say(
                f"{one.label}: {job}, and will not start by itself; see `scontrol show job {job.id}`, then "
                f"`scontrol release {job.id}` or `scancel {job.id}`"
            )
        if not one.runs:
            one.hide(display)
            return
        if not one.is_shown:
            position = 1 + sum(other.is_shown for other in self._followed)
            one.begin(display, self.books.plan.short_name_of(one.target), position)
            self._say(f"{one.label}: {job}; log: {one.target.folder.log}")
        one.show_steps(display)

    def _maybe_end(self, one: Followed) -> None:
        """Tell the outcome of a job that is not live, once what its node wrote can be seen."""
        now = time.monotonic()
        one.gone_at = one.gone_at or now
        result = self._outcomes.of(one, settled=now - one.gone_at >= SETTLE_SECONDS)
        if result is None:
            return
        self._followed.remove(one)
        one.end(self.books.display, well=result.state is State.COMPLETE)
        self.results.append(result)
        if result.state is State.FAILED:
            self._failures.append(result.error.replace(one.target.artist.name, ""))
        else:
            self._failures.clear()

    def _give_up_on_failures(self) -> None:
        """After too many failures alike, cancel what has not begun."""
        if not same_failure(self._failures):
            return
        left = [one for one in self._followed if one.submitted and not one.runs]
        cancel_jobs([one.job.id for one in left if one.job is not None], pending_only=True)
        self._failures.clear()
        self._say(
            f"{SAME_FAILURES} artists in a row failed alike; {len(left)} jobs that had not begun are "
            f"cancelled, and {len(self._waiting)} are not submitted"
        )
        self._waiting = []

    def _queued_result(self, one: Followed) -> Result:
        return Result(target=one.target, state=State.QUEUED, error="" if one.job is None else str(one.job))

    def _say_counts(self) -> None:
        runs = sum(one.runs for one in self._followed)
        done = sum(result.state is State.COMPLETE for result in self.results)
        counts = f"{done} complete, {runs} running, {len(self._followed) - runs} queued"
        if self._waiting:
            counts += f", {len(self._waiting)} not submitted yet"
        now = time.monotonic()
        if counts != self._said and now - self._said_at >= _COUNT_SECONDS:
            self._said, self._said_at = counts, now
            self._say(counts)

    def _say_left(self) -> None:
        names = sorted({one.job.name for one in self._followed if one.job is not None})
        if not names:
            try:
                jobs = jobs_of_study(self._tree)
                keys = {one.target.adapter.key for one in self._followed}
                names = sorted({job.name for key, job in jobs.items() if key in keys})
            except QueueUnknown:
                names = []
        cancel = f"; scancel --name={','.join(names)} ends them" if names else ""
        self._say(
            f"{len(self._followed)} stay in the queue; the same command follows them, and submits none of "
            f"them again{cancel}"
        )

    def _say(self, text: str) -> None:
        self.books.display.say(printable(text))


def _is_live(job: QueuedJob | None) -> bool:
    return job is not None and job.is_live
