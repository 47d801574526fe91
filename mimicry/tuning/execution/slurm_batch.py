"""A plan that is carried out by a Slurm cluster: jobs are submitted, followed, and their outcome is told.

The worker on the node claims, looks again, trains and keeps the tracker, as any call of apply_tuning does.
This call only watches files and the queue. The outcome is what the record and the verified adapter say.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mimicry.common.children import Interrupted, stop_signals_held
from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault, ClaimedElsewhere
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.execution.bookkeeping import Bookkeeper
from mimicry.tuning.execution.bookmarks import complete_bookmark, log_path
from mimicry.tuning.execution.result import SAME_FAILURES, Result, same_failure
from mimicry.tuning.execution.slurm import QueueFull, SlurmSubmitter, SubmissionUnknown
from mimicry.tuning.execution.slurm_queue import QueuedJob, QueueUnknown, cancel_jobs, jobs_of_study
from mimicry.tuning.execution.supervision import MetricsReader
from mimicry.tuning.planning import Plan, Target
from mimicry.tuning.progress import BatchDisplay, StepDisplay, duration, eval_change

# Between two looks at the queue, between two tries to submit to a full one, between two lines of counts.
POLL_SECONDS = 5.0
RETRY_SECONDS = 60.0
_COUNT_SECONDS = 60.0
# What a node has written is seen from here only so long after its job has ended.
SETTLE_SECONDS = 15.0
_LAST_STATES = (State.FAILED, State.BLOCKED, State.INTERRUPTED)


@dataclass
class _Followed:
    """A cell in the queue. `job` is as it was last seen, `gone_at` since when it is not live."""

    target: Target
    label: str
    submitted: bool
    job: QueuedJob | None = None
    metrics: MetricsReader | None = None
    steps: StepDisplay | None = None
    gone_at: float | None = None
    said_stuck: bool = False


@dataclass
class SlurmBatch:
    """A plan being carried out by a cluster. Without `wait`, it ends when everything is in the queue."""

    plan: Plan
    submitter: SlurmSubmitter
    tracker: ProgressTracker
    display: BatchDisplay
    wait: bool = True
    results: list[Result] = field(default_factory=list)
    _followed: list[_Followed] = field(default_factory=list)
    _waiting: list[Target] = field(default_factory=list)
    _failures: list[str] = field(default_factory=list)
    _last_array: str = ""
    _next_try: float = 0.0
    _counted_at: float = 0.0
    _counted: str = ""

    def run(self) -> None:
        """Submit what is to be trained, and follow it and what was in the queue before.

        Raises:
            BatchFault: Slurm refuses the jobs.
            Interrupted: a stop signal came; the jobs stay in the queue.
        """
        Bookkeeper(self.plan, self.tracker, self.display).prepare()
        self._waiting = self.plan.of(State.PENDING)
        self._follow(self.plan.of(State.QUEUED), submitted=False)
        try:
            self._submit()
            while self.wait and (self._followed or self._waiting):
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
                self._close(one, well=False)
            self.results += [self._queued_result(one) for one in self._followed]
        if self._waiting:
            self._say(f"{len(self._waiting)} are not submitted, as the queue is full; type the command again")
        if not self.wait and self._followed:
            self._say_left()

    def _submit(self) -> None:
        """Submit what waits, in arrays as large as the cluster takes."""
        if not self._waiting:
            return
        try:
            claim = Claim.take_anew(self.plan.call.tree.slurm)
        except ClaimedElsewhere as error:
            raise BatchFault(f"another call is submitting now: {error}") from error
        with claim:
            known = jobs_of_study(self.plan.call.tree)
            meanwhile = [target for target in self._waiting if _is_live(known.get(target.adapter.key))]
            self._follow(meanwhile, submitted=False)
            self._waiting = [target for target in self._waiting if target not in meanwhile]
            size = self.submitter.largest_array()
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
        limit = self.submitter.settings.max_parallel
        # The throttle of an array holds for that array alone, so the next one waits for its end.
        after = self._last_array if limit is not None else ""
        with stop_signals_held():
            array = self.submitter.submit(part, after=after)
            self._last_array = array
            self._waiting = self._waiting[len(part) :]
            self._follow(part, submitted=True)
        count = "1 job" if len(part) == 1 else f"{len(part)} jobs"
        self._say(f"submitted {count}, {array}; what they print is in {self.plan.call.tree.slurm}")

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
            _Followed(target, printable(self.plan.name_of(target)), submitted) for target in targets
        ]

    def _look(self) -> bool:
        """See how the jobs are; False when none of them will end by itself."""
        try:
            jobs = jobs_of_study(self.plan.call.tree)
        except QueueUnknown as error:
            if self._counted != str(error):
                self._counted = str(error)
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
        stuck = [one for one in self._followed if one.job is not None and one.job.is_stuck]
        return not stuck or len(stuck) < len(self._followed) or bool(self._waiting)

    def _watch(self, one: _Followed) -> None:
        """Tell how a live job is getting on."""
        job, key, folder = one.job, one.target.adapter.key, one.target.folder
        assert job is not None
        if job.is_stuck and not one.said_stuck:
            one.said_stuck = True
            self._say(
                f"{one.label}: {job}, and will not start by itself; see `scontrol show job {job.id}`, then "
                f"`scontrol release {job.id}` or `scancel {job.id}`"
            )
        if not job.runs:
            self._close(one, well=False)
            return
        if one.steps is None:
            label = self.plan.short_name_of(one.target)
            one.steps = StepDisplay(label, one.target.step_count, position=1 + self._free_line())
            one.metrics = MetricsReader(folder.metrics)
            self.display.begin(key, one.target.step_count)
            self._say(f"{one.label}: {job}; log: {log_path(self.plan.call.tree, folder)}")
        assert one.metrics is not None
        for line in one.metrics.new_lines():
            one.steps.step(line)
            self.display.step(key, int(line["step"]))
        one.steps.tick()

    def _free_line(self) -> int:
        return sum(one.steps is not None for one in self._followed)

    def _close(self, one: _Followed, *, well: bool) -> None:
        if one.steps is not None:
            one.steps.close()
            one.steps = one.metrics = None
            self.display.end(one.target.adapter.key, well=well)

    def _maybe_end(self, one: _Followed) -> None:
        """Tell the outcome of a job that is not live, once what its node wrote can be seen."""
        now = time.monotonic()
        one.gone_at = one.gone_at or now
        target = one.target
        found = target.judge()
        if found.state not in (State.COMPLETE, State.STALE) and now - one.gone_at < SETTLE_SECONDS:
            return
        self._followed.remove(one)
        self._close(one, well=found.state is State.COMPLETE)
        if found.state in (State.COMPLETE, State.STALE):
            self._failures.clear()
            self.results.append(self._trained(one, found.state, found.reason))
        else:
            self.results.append(self._not_trained(one))

    def _trained(self, one: _Followed, state: State, reason: str) -> Result:
        target = one.target
        mark = complete_bookmark(self.plan.call.tree, target.folder)
        key = target.adapter.key
        if self.tracker.bookmarks().get(key, {}).get("status") != State.COMPLETE:
            self.tracker.record(key, **mark)
        loss, evaluation, seconds = mark["loss"], eval_change(mark["eval_loss"]), mark["seconds"] or 0.0
        hub, run = mark.get("hub") or {}, target.folder.readable_run
        said = {*target.warnings, *target.inputs.notes}
        words = [f"{state} in {duration(seconds)}", reason, evaluation]
        if loss is not None:
            words.insert(1, f"mean loss {loss:.4f}")
        self._say(f"{one.label}: {', '.join(filter(None, words))}")
        return Result(
            target=target,
            state=state,
            trained=state is State.COMPLETE,
            seconds=seconds,
            loss=loss,
            error=reason,
            owed=str(hub.get("error", "")),
            evaluation=evaluation,
            warnings=tuple(each for each in run.warnings if each not in said),
        )

    def _not_trained(self, one: _Followed) -> Result:
        target, job = one.target, one.job
        mark = self.tracker.bookmarks().get(target.adapter.key, {})
        state, error = State.FAILED, "its job has left the queue, and left no adapter"
        if job is not None:
            error = f"{job}, and left no adapter"
            if job.state == "CANCELLED":
                state = State.INTERRUPTED
                error = f"job {job.id} was cancelled; the same command submits it again"
        if mark.get("status") in _LAST_STATES and state is State.FAILED:
            state, error = State(mark["status"]), str(mark.get("error") or error)
        else:
            self.tracker.record(target.adapter.key, status=state, error=error)
        if state is State.FAILED:
            self._failures.append(error.replace(target.artist.name, ""))
        else:
            self._failures.clear()
        printed = self._printed(job)
        self._say(f"{one.label}: {state}: {error}{printed}")
        return Result(target=target, state=state, error=f"{error}{printed}")

    def _printed(self, job: QueuedJob | None) -> str:
        """Say where the output of a job is, which tells what no record does."""
        if job is None:
            return ""
        path = self.plan.call.tree.slurm / job.name / f"{job.id}_0_log.out"
        return f"; see {path}" if path.exists() else ""

    def _give_up_on_failures(self) -> None:
        """After too many failures alike, cancel what has not begun."""
        if not same_failure(self._failures):
            return
        left = [one for one in self._followed if one.submitted and one.job is not None and not one.job.runs]
        cancel_jobs([one.job.id for one in left if one.job is not None], pending_only=True)
        self._failures.clear()
        self._say(
            f"{SAME_FAILURES} artists in a row failed alike; {len(left)} jobs that had not begun are "
            f"cancelled, and {len(self._waiting)} are not submitted"
        )
        self._waiting = []

    def _queued_result(self, one: _Followed) -> Result:
        return Result(target=one.target, state=State.QUEUED, error="" if one.job is None else str(one.job))

    def _say_counts(self) -> None:
        runs = sum(one.job is not None and one.job.runs for one in self._followed)
        done = sum(result.state is State.COMPLETE for result in self.results)
        counts = f"{done} complete, {runs} running, {len(self._followed) - runs} queued"
        if self._waiting:
            counts += f", {len(self._waiting)} not submitted yet"
        now = time.monotonic()
        if counts != self._counted and now - self._counted_at >= _COUNT_SECONDS:
            self._counted, self._counted_at = counts, now
            self._say(counts)

    def _say_left(self) -> None:
        names = sorted({one.job.name for one in self._followed if one.job is not None})
        if not names:
            try:
                jobs = jobs_of_study(self.plan.call.tree)
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
        self.display.say(printable(text))


def _is_live(job: QueuedJob | None) -> bool:
    return job is not None and job.is_live
