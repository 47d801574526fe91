"""Keeping book of a plan that is carried out: bookmarks in the tracker, results, and what is said of each."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from mimicry.common.errors import BatchFault, MimicryError
from mimicry.common.files import utc_now
from mimicry.common.text import printable
from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.adapters import AdapterState, describe_differences
from mimicry.tuning.adapters.bookmark import Bookmark, read_bookmarks
from mimicry.tuning.execution.bookmarks import complete_bookmark, log_path
from mimicry.tuning.execution.executor import JobEnd
from mimicry.tuning.execution.result import Result, same_failure
from mimicry.tuning.execution.sharing import is_as_planned, recheck, repair
from mimicry.tuning.planning import OVERWRITTEN, RETRAINED, Plan, Target, refuse_new_recipes
from mimicry.tuning.progress import BatchDisplay, duration, eval_change

# Adapters that are good, and trained again only when that is asked for.
_KEPT = (State.COMPLETE, State.STALE)


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
    # Of the trainings that ended last: the place and why, up to the last one that ended otherwise.
    _failures: list[tuple[str, str]] = field(default_factory=list)
    _failures_by_place: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    # The bookmarks as this call left them before its first training.
    _marked: dict[str, Bookmark] = field(default_factory=dict)

    @property
    def gives_up(self) -> bool:
        """Whether so many trainings failed alike that the others would fail as well.

        One that still runs may end well, which shows that they would not.
        """
        return same_failure([words for _, words in self._failures])

    def fails_always(self, where: str) -> bool:
        """Return whether so many trainings in a row failed alike in this place, whatever others did."""
        return same_failure(self._failures_by_place[where])

    def forget_failures(self, where: str) -> None:
        """Count the failures of a place no longer: it is not used any more."""
        self._failures = [failure for failure in self._failures if failure[0] != where]
        self._failures_by_place.pop(where, None)

    def prepare(self) -> None:
        """Record the plan in the tracker, and repair what is complete.

        An adapter that is to be trained again stays in its place until its turn comes.

        Raises:
            BatchFault: the tracker cannot be written, so nothing is done.
        """
        known = read_bookmarks(self.tracker)
        marks = {
            target.adapter.key: mark
            for target in self.plan.targets
            if (mark := self._first_mark(target, known.get(target.adapter.key, Bookmark()))) is not None
        }
        try:
            self.tracker.record_many({key: mark.to_json() for key, mark in marks.items()})
        except MimicryError as error:
            raise BatchFault(*error.problems) from error
        self._marked = {**known, **marks}
        for target in self.plan.of(State.COMPLETE, State.STALE):
            mended = repair(target.folder)
            if mended:
                self.display.say(printable(f"{self.plan.name_of(target)}: {mended}"))

    def _first_mark(self, target: Target, known: Bookmark) -> Bookmark | None:
        """Return what is recorded of a target before the first training; None for nothing new."""
        if target.state is State.BLOCKED:
            return Bookmark.ended(State.BLOCKED, error=target.reason)
        mark = Bookmark()
        if target.state is State.PENDING and target.existing not in _KEPT:
            mark = Bookmark.waiting(len(target.images.names))
        # The call that trains a claimed one will record its state.
        elif target.state is not State.CLAIMED and known.status is not State.COMPLETE:
            mark = complete_bookmark(self.plan.call.tree, target.folder)
        overwrite = self.plan.overwrite_mark(target)
        if overwrite is not None:
            mark = mark.with_fields(overwrite=overwrite)
        return mark if mark.named else None

    def recheck(self, target: Target) -> AdapterState | None:
        """Return what another call has made of a claimed target; None when it is still to be trained.

        What the plan saw in its folder, and wants to be trained again, is set aside.

        Raises:
            BatchFault: another call has brought another recipe into the study.
        """
        refuse_new_recipes(self.plan, target.request)
        key = target.adapter.key
        if is_as_planned(target):
            if target.existing in _KEPT:
                note = OVERWRITTEN if self.plan.call.overwrite else RETRAINED
                mark = Bookmark.waiting(len(target.images.names)).with_fields(note=note)
                self.tracker.record(key, **mark.to_json())
            aside = target.folder.set_aside(target.existing)
            self.display.say(
                printable(f"{self.plan.name_of(target)}: {target.existing} adapter set aside in {aside}")
            )
            return None
        return recheck(target, self._marked.get(key, Bookmark()), self.bookmark(target))

    def bookmark(self, target: Target) -> Bookmark:
        """Return the bookmark of a target as it is now."""
        return read_bookmarks(self.tracker).get(target.adapter.key, Bookmark())

    def say_begun(self, one: Training, where: str = "") -> None:
        """Say that a training begins, where it runs and has its log, and how long all of them will take."""
        words = [
            f"training on {len(one.target.images.names)} images",
            where,
            self.display.time_left(),
            f"log: {log_path(self.plan.call.tree, one.target.folder)}",
        ]
        self.display.say(printable(f"{one.label}: {'; '.join(filter(None, words))}"))

    def ended(self, one: Training, end: JobEnd) -> None:
        """Record and say how a training ended."""
        if end.state is not State.FAILED:
            self._failures.clear()
            self._failures_by_place[end.where].clear()
        if end.elsewhere:
            self._done_elsewhere(one, end)
            return
        if end.state is State.COMPLETE:
            self._completed(one, end)
            return
        if end.state is State.FAILED:
            self._show_failure(one, end)
        elif end.state is State.BLOCKED:
            self.display.say(f"{one.label}: blocked: {end.error}")
        else:
            self.display.say(f"{one.label}: interrupted, {end.error}; the same command takes it up")
        self.not_complete(one, end)

    def _done_elsewhere(self, one: Training, end: JobEnd) -> None:
        target = one.target
        result = Result(target=target, state=end.state, error=end.error)
        self.results.append(result)
        self.display.say(f"{one.label}: {result.word}, {end.error}")
        if end.state is State.FAILED:
            self._note_failure(end.where, end.error)
        elif self.bookmark(target).status is not State.COMPLETE:
            mark = complete_bookmark(self.plan.call.tree, target.folder)
            self.tracker.record(target.adapter.key, **mark.to_json())

    def not_complete(self, one: Training, end: JobEnd) -> None:
        """Record a training that ended without an adapter."""
        seconds = round(one.seconds(), 1)
        warnings = self._say_warnings(one, end)
        result = Result(
            target=one.target, state=end.state, seconds=seconds, error=end.error, warnings=warnings
        )
        self._record(
            result,
            Bookmark.ended(
                end.state,
                started_at=one.started_at,
                seconds=seconds,
                steps=end.steps,
                error=end.error,
                log=log_path(self.plan.call.tree, one.target.folder),
            ),
        )

    def _say_warnings(self, one: Training, end: JobEnd) -> tuple[str, ...]:
        """Say what the training itself has found odd, and return it; the plan's own warnings were said."""
        run = one.target.folder.readable_run
        said = {*one.target.warnings, *one.target.inputs.notes, describe_differences(run.other_numerics)}
        warnings = tuple(warning for warning in end.warnings if warning not in said)
        for warning in warnings:
            self.display.say(f"{one.label}: warning: {warning}")
        return warnings

    def _completed(self, one: Training, end: JobEnd) -> None:
        target, seconds, code = one.target, one.seconds(), end.code
        run = target.folder.readable_run
        mark = complete_bookmark(self.plan.call.tree, target.folder)
        # Start and end of the programs around the training count as well.
        mark = mark.with_fields(seconds=round(run.earlier_seconds + seconds, 1))
        if run.resumed_from is None:
            mark = mark.with_fields(started_at=one.started_at)
        resumed = "" if run.resumed_from is None else f", resumed at step {run.resumed_from}"
        warnings = self._say_warnings(one, end)
        hub = mark.hub or {}
        loss, evaluation = mark.loss, eval_change(mark.eval_loss)
        numerics = describe_differences(mark.other_numerics or {})
        self.display.say(
            f"{one.label}: complete in {duration(seconds)}{resumed}"
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
            earlier_seconds=run.earlier_seconds,
            loss=loss,
            # The adapter is whole, so what went wrong came after it.
            owed=str(hub.get("error", "")) or (f"unknown, exit code {code}" if code else ""),
            evaluation=evaluation,
            numerics=numerics,
            warnings=warnings,
        )
        self._record(result, mark)

    def _record(self, result: Result, mark: Bookmark) -> None:
        # If the tracker cannot be written the batch ends, and its summary must have the result.
        self.results.append(result)
        self.tracker.record(result.target.adapter.key, **mark.to_json())

    def _note_failure(self, where: str, words: str) -> None:
        self._failures.append((where, words))
        self._failures_by_place[where].append(words)

    def _show_failure(self, one: Training, end: JobEnd) -> None:
        folder = one.target.folder.path
        self._note_failure(end.where, end.error.replace(str(folder), "").replace(folder.name, ""))
        self.display.say(f"{one.label}: failed: {end.error}")
        for line in end.log_lines:
            self.display.say(f"    | {line}")
