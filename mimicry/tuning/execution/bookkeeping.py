"""Keeping book of a plan that is carried out: bookmarks in the tracker, results, and what is said of each."""

import time
from dataclasses import dataclass, field
from typing import Any

from mimicry.common.errors import BatchFault, MimicryError
from mimicry.common.files import utc_now
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.adapters import AdapterState, describe_differences
from mimicry.tuning.execution.bookmarks import complete_bookmark, log_path
from mimicry.tuning.execution.executor import JobEnd
from mimicry.tuning.execution.result import Result, same_failure
from mimicry.tuning.execution.sharing import recheck, repair, set_aside_as_planned
from mimicry.tuning.planning import OVERWRITTEN, Plan, Target
from mimicry.tuning.progress import BatchDisplay, duration, eval_change

# What a bookmark says of a former training: it would be taken for that of the next one.
_OF_ONE_RUN = (
    "started_at",
    "seconds",
    "steps",
    "loss",
    "eval_loss",
    "other_numerics",
    "unpaired",
    "resumed_from",
    "hub",
    "error",
)


@dataclass(frozen=True)
class Training:
    """A target in training: what it is called in messages, and when it began."""

    target: Target
    label: str
    started_at: str = field(default_factory=utc_now)
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return time.monotonic() - self.began


@dataclass
class Bookkeeper:
    """Keeps the tracker, the results and the screen up to date while a plan is carried out."""

    plan: Plan
    tracker: ProgressTracker
    display: BatchDisplay
    results: list[Result] = field(default_factory=list)
    _failures: list[str] = field(default_factory=list)
    # The bookmarks as this call left them before its first training.
    _marked: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def gives_up(self) -> bool:
        """Whether so many trainings failed alike that the others would fail as well."""
        return same_failure(self._failures)

    def prepare(self) -> None:
        """Record the plan in the tracker, then set aside the adapters that are to be trained again.

        Raises:
            BatchFault: the tracker cannot be written, so nothing is done.
        """
        known = self.tracker.bookmarks()
        marks = {
            target.adapter.key: mark
            for target in self.plan.targets
            if (mark := self._first_mark(target, known.get(target.adapter.key, {}))) is not None
        }
        try:
            self.tracker.record_many(marks)
        except MimicryError as error:
            raise BatchFault(*error.problems) from error
        self._marked = {**known, **marks}
        for target in self.plan.of(State.COMPLETE, State.STALE):
            mended = repair(target.folder)
            if mended:
                self.display.say(printable(f"{target.artist}: {mended}"))
        for target in self.plan.of(State.PENDING):
            aside = None if target.existing is State.PENDING else set_aside_as_planned(target)
            if aside is not None:
                self.display.say(
                    printable(f"{target.artist}: {target.existing} adapter set aside in {aside}")
                )

    def _first_mark(self, target: Target, known: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is recorded of a target before the first training; None for nothing new."""
        if target.state is State.BLOCKED:
            return {"status": State.BLOCKED, "error": target.reason}
        if target.state is State.PENDING:
            replaced = target.existing in (State.COMPLETE, State.STALE)
            note = {"note": OVERWRITTEN} if replaced else {}
            images = len(target.images.names)
            return {**dict.fromkeys(_OF_ONE_RUN), "status": State.PENDING, "images": images, **note}
        if known.get("status") == State.COMPLETE:
            return None
        return complete_bookmark(self.plan.request.tree, target.folder)

    def recheck(self, target: Target) -> AdapterState | None:
        """Return what another call has made of a claimed target; None when it is still to be trained."""
        key = target.adapter.key
        return recheck(target, self._marked.get(key, {}), self.tracker.bookmarks().get(key, {}))

    def ended(self, one: Training, end: JobEnd) -> None:
        """Record and say how a training ended."""
        if end.state is not State.FAILED:
            self._failures.clear()
        if end.elsewhere:
            self._done_elsewhere(one, end)
            return
        if end.state is State.COMPLETE:
            self._completed(one, end.code)
            return
        if end.state is State.FAILED:
            self._show_failure(one, end)
        elif end.state is State.BLOCKED:
            self.display.say(f"{one.label}: blocked: {end.error}")
        else:
            self.display.say(f"{one.label}: interrupted, {end.error}; the same command takes it up")
        self.not_complete(one, end)

    def _done_elsewhere(self, one: Training, end: JobEnd) -> None:
        target, key = one.target, one.target.adapter.key
        result = Result(target=target, state=end.state, error=end.error)
        self.results.append(result)
        self.display.say(f"{one.label}: {result.word}, {end.error}")
        if end.state is State.FAILED:
            self._failures.append(end.error)
        elif self.tracker.bookmarks().get(key, {}).get("status") != State.COMPLETE:
            self.tracker.record(key, **complete_bookmark(self.plan.request.tree, target.folder))

    def not_complete(self, one: Training, end: JobEnd) -> None:
        """Record a training that ended without an adapter."""
        seconds = round(one.seconds(), 1)
        result = Result(target=one.target, state=end.state, seconds=seconds, error=end.error)
        self._record(
            result,
            status=end.state,
            started_at=one.started_at,
            seconds=seconds,
            steps=end.steps,
            error=end.error,
            log=log_path(self.plan.request.tree, one.target.folder),
        )

    def _completed(self, one: Training, code: int) -> None:
        target, seconds = one.target, one.seconds()
        mark = complete_bookmark(self.plan.request.tree, target.folder)
        if mark.get("resumed_from") is None:
            # Start and end of the programs around the training count as well.
            mark |= {"started_at": one.started_at, "seconds": round(seconds, 1)}
        hub = mark.get("hub") or {}
        loss, evaluation = mark["loss"], eval_change(mark["eval_loss"])
        numerics = describe_differences(mark["other_numerics"] or {})
        self.display.say(
            f"{one.label}: complete in {duration(seconds)}"
            + (f", mean loss {loss:.4f}" if loss is not None else "")
            + (f", {evaluation}" if evaluation else "")
            + (f", {numerics}" if numerics else "")
            + (f", uploaded to {hub['repository_id']}" if "repository_id" in hub else "")
        )
        result = Result(
            target=target,
            state=State.COMPLETE,
            trained=True,
            seconds=seconds,
            loss=loss,
            # The adapter is whole, so what went wrong came after it.
            owed=str(hub.get("error", "")) or (f"unknown, exit code {code}" if code else ""),
            evaluation=evaluation,
            numerics=numerics,
        )
        self._record(result, **mark)

    def _record(self, result: Result, **fields: Any) -> None:
        # If the tracker cannot be written the batch ends, and its summary must have the result.
        self.results.append(result)
        self.tracker.record(result.target.adapter.key, **fields)

    def _show_failure(self, one: Training, end: JobEnd) -> None:
        folder = one.target.folder.path
        self._failures.append(end.error.replace(str(folder), "").replace(folder.name, ""))
        self.display.say(f"{one.label}: failed: {end.error}")
        for line in end.log_lines:
            self.display.say(f"    | {line}")
