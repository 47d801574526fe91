"""What became of a cell whose job has left the queue of a cluster.

The record and the verified adapter tell, then the tracker, which the worker on the node keeps. Slurm is asked
about a training that had no time to say anything.
"""

from dataclasses import dataclass

from mimicry.common.text import printable
from mimicry.study import State
from mimicry.tuning.adapters import AdapterState
from mimicry.tuning.adapters.bookmark import Bookmark
from mimicry.tuning.execution.bookkeeping import Bookkeeper
from mimicry.tuning.execution.bookmarks import complete_bookmark
from mimicry.tuning.execution.result import Result
from mimicry.tuning.execution.sharing import is_as_planned
from mimicry.tuning.execution.slurm_followed import Followed
from mimicry.tuning.execution.slurm_queue import QueuedJob
from mimicry.tuning.planning import Target
from mimicry.tuning.progress import duration, eval_change

_GOOD = (State.COMPLETE, State.STALE)
_BAD = (State.FAILED, State.BLOCKED)


@dataclass
class Outcomes:
    """Tells, records and says outcomes."""

    books: Bookkeeper

    def of(self, one: Followed, *, settled: bool) -> Result | None:
        """Return what became of a cell without a live job; None while that cannot be told yet.

        Args:
            settled: whatever the node has written can be seen from here.
        """
        found = one.target.judge()
        # What is to be replaced is good as well, until its job begins.
        if found.state in _GOOD and not is_as_planned(one.target):
            return self._trained(one, found)
        if settled or self._mark(one.target).status in _BAD:
            return self._not_trained(one)
        return None

    def _trained(self, one: Followed, found: AdapterState) -> Result:
        target, run = one.target, one.target.folder.readable_run
        mark = complete_bookmark(self.books.plan.call.tree, target.folder)
        if self._mark(target).status is not State.COMPLETE:
            self.books.tracker.record(target.adapter.key, **mark.to_json())
        loss, evaluation, seconds = mark.loss, eval_change(mark.eval_loss), mark.seconds or 0.0
        words = [
            f"{found.state} in {duration(seconds)}",
            "" if loss is None else f"mean loss {loss:.4f}",
            found.reason,
            evaluation,
        ]
        self._say(one, ", ".join(filter(None, words)))
        said = {*target.warnings, *target.inputs.notes}
        return Result(
            target=target,
            state=found.state,
            trained=found.state is State.COMPLETE,
            seconds=seconds,
            loss=loss,
            error=found.reason,
            owed=str((mark.hub or {}).get("error", "")),
            evaluation=evaluation,
            warnings=tuple(warning for warning in run.warnings if warning not in said),
        )

    def _not_trained(self, one: Followed) -> Result:
        target, job, mark = one.target, one.job, self._mark(one.target)
        state, error = State.FAILED, "its job has left the queue, and left no adapter"
        if job is not None:
            error = f"{job}, and left no adapter"
        if mark.status in (State.FAILED, State.BLOCKED):
            state, error = mark.status, mark.error or error
        elif job is not None and job.state == "CANCELLED":
            state = State.INTERRUPTED
            error = f"job {job.id} was cancelled; the same command submits it again"
        elif mark.status is State.INTERRUPTED:
            state, error = State.INTERRUPTED, f"{mark.error or 'interrupted'}; {error}"
        if mark.status not in _BAD and not is_as_planned(target):
            self.books.tracker.record(target.adapter.key, **Bookmark.ended(state, error=error).to_json())
        self._say(one, f"{state}: {error}{self._printed(job)}")
        return Result(target=target, state=state, error=error)

    def _mark(self, target: Target) -> Bookmark:
        return self.books.bookmark(target)

    def _printed(self, job: QueuedJob | None) -> str:
        """Say where the output of a job is, which tells what no record does."""
        if job is None:
            return ""
        path = job.log(self.books.plan.call.tree)
        return f"; see {path}" if path.exists() else ""

    def _say(self, one: Followed, text: str) -> None:
        self.books.display.say(printable(f"{one.label}: {text}"))
