"""The books of a plan that is carried out: bookmarks, results, what is said, and what other calls have done.

Several calls of apply_tuning may share one tree, and each adapter is trained once: a call that works on an
adapter holds the claim to its folder, and looks again at what lies there once it has it.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from mimicry.common.claims import CLAIM, Claim
from mimicry.common.errors import BatchFault, MimicryError
from mimicry.common.files import utc_now
from mimicry.common.text import printable
from mimicry.study import ProgressTracker, State
from mimicry.tuning.adapters import (
    AdapterFolder,
    AdapterState,
    Bookmark,
    complete_bookmark,
    describe_differences,
    log_path,
    read_bookmarks,
)
from mimicry.tuning.planning import (
    OVERWRITTEN,
    RETRAINED,
    BatchDisplay,
    Plan,
    StepDisplay,
    Target,
    duration,
    eval_change,
    refuse_new_recipes,
)

ELSEWHERE = "by another call"
# Adapters that are good, and trained again only when that is asked for.
KEPT = (State.COMPLETE, State.STALE)
# After this many trainings or uploads in a row that failed alike, the others would fail as well.
SAME_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended.

    Attributes:
        state: how the adapter is; RUNNING when another call works on it, and it is to be looked at again.
        error: why it is not complete.
        elsewhere: there was nothing to do, since another call has done it.
        recorded: a call of apply_tuning on a worker has trained it, and has recorded that in the tracker.
        where: the place that it was trained in, where there are several.
        code: the exit code of the training.
        log: a file that says more about a failure than the adapter's own log.
    """

    state: State
    error: str = ""
    elsewhere: bool = False
    recorded: bool = False
    where: str = ""
    steps: int = 0
    code: int = 0
    log_lines: tuple[str, ...] = ()
    log: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one target; texts are for people.

    Attributes:
        state: how its adapter is now.
        trained: by this call, or by a job of it.
        seconds: of this call, without the `earlier_seconds` before it went on from a checkpoint.
        owed: why an upload is still pending.
        evaluation: the loss on the original art before and after.
        numerics: how the adapter's numerics differ from those of its sisters.
        warnings: what the training itself has found odd.
    """

    target: Target
    state: State
    trained: bool = False
    uploaded: bool = False
    seconds: float = 0.0
    earlier_seconds: float = 0.0
    loss: float | None = None
    error: str = ""
    owed: str = ""
    evaluation: str = ""
    numerics: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """What the summary says."""
        if self.trained:
            return "trained"
        if self.uploaded:
            return "uploaded"
        if self.owed:
            return "owed"
        if self.state is State.RUNNING:
            return "claimed"
        return "skipped" if self.state in KEPT else self.state.value


@dataclass(eq=False)
class Training:
    """A target that is to be trained, for the executor that takes it on: what it asks and tells.

    `label` names it in lines for people. It is shown from `begun` on, until it is paused or has ended.
    """

    target: Target
    label: str
    books: "Bookkeeper"
    started_at: str = field(default_factory=utc_now)
    _began: float = field(default_factory=time.monotonic)
    _steps: StepDisplay | None = None
    line: int = 0

    @property
    def key(self) -> str:
        return self.target.adapter.key

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def recheck(self) -> AdapterState | None:
        """Return what another call has made of it; None when it is still to be trained.

        For a worker that has claimed the folder. What the plan saw there, and wants to be trained again, is
        set aside.

        Raises:
            BatchFault: another call has brought another recipe into the study.
        """
        return self.books.recheck(self.target)

    def say(self, text: str) -> None:
        """Print a line about it."""
        self.books.display.say(f"{self.label}: {text}")

    def begun(self, where: str = "") -> None:
        """Say that the training begins, or goes on; `where` names the place, where there are several."""
        self.started_at, self._began = utc_now(), time.monotonic()
        display, tree = self.books.display, self.books.plan.call.tree
        # The line above those of trainings is that of the batch.
        taken = {training.line for training in self.books.shown}
        self.line = next(line for line in count(1) if line not in taken)
        self.books.shown.append(self)
        name, steps = self.books.plan.short_name_of(self.target), self.target.step_count
        self._steps = StepDisplay(name, steps, self.line)
        display.begin(self.key, steps)
        facts = [
            f"training on {len(self.target.images.names)} images",
            where,
            display.time_left(),
            f"log: {log_path(tree, self.target.folder)}",
        ]
        self.say(printable("; ".join(filter(None, facts))))

    def phase(self, text: str) -> None:
        """Show the last line that was logged before the first step."""
        if self._steps is not None:
            self._steps.phase(text)

    def step(self, line: dict[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        if self._steps is not None:
            self._steps.step(line)
            self.books.display.step(self.key, int(line["step"]))

    def tick(self) -> None:
        """Show how long it has taken, while there is no step yet."""
        if self._steps is not None:
            self._steps.tick()

    def paused(self) -> None:
        """Show it no longer, if it was shown; it may begin again."""
        if self._hide():
            self.books.display.leave(self.key)

    def over(self, *, well: bool) -> None:
        """Show that it has ended; how long one took that ended well tells what others will take."""
        if not self._hide():  # nobody saw it begin
            self.books.display.begin(self.key, self.target.step_count)
            well = False
        self.books.display.end(self.key, well=well)

    def _hide(self) -> bool:
        if self._steps is None:
            return False
        self._steps.close()
        self._steps = None
        self.books.shown.remove(self)
        return True


@dataclass
class Bookkeeper:
    """Keeps the tracker, the results and the screen up to date while a plan is carried out."""

    plan: Plan
    tracker: ProgressTracker
    display: BatchDisplay
    results: list[Result] = field(default_factory=list)
    shown: list[Training] = field(default_factory=list)
    # The place of each training that has ended, and why it failed; empty where it did not.
    _ends: list[tuple[str, str]] = field(default_factory=list)
    # The bookmarks as this call left them before its first training.
    _marked: dict[str, Bookmark] = field(default_factory=dict)

    @property
    def gives_up(self) -> bool:
        """Whether the last trainings failed alike, so that the others would fail as well.

        One that still runs may end well, which shows that they would not.
        """
        return same_failure([failure for _, failure in self._ends])

    def fails_always(self, where: str) -> bool:
        """Return whether the last trainings in this place failed alike, whatever others did."""
        return same_failure([failure for place, failure in self._ends if place == where])

    def forget_failures(self, where: str) -> None:
        """Count the failures of a place no longer: it is not used any more."""
        self._ends = [end for end in self._ends if end[0] != where]

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
        for target in self.plan.of(*KEPT):
            mended = repair(target.folder)
            if mended:
                self.display.say(printable(f"{self.plan.name_of(target)}: {mended}"))

    def _first_mark(self, target: Target, known: Bookmark) -> Bookmark | None:
        if target.state is State.BLOCKED:
            return Bookmark.ended(State.BLOCKED, error=target.reason)
        mark = Bookmark()
        if target.state is State.WAITING and target.existing not in KEPT:
            mark = Bookmark.waiting(len(target.images.names))
        elif target.state in (State.WAITING, *KEPT) and known.status is not State.COMPLETE:
            mark = complete_bookmark(self.plan.call.tree, target.folder)
        overwrite = self.plan.overwrite_mark(target)
        if overwrite is not None:
            mark = mark.with_fields(overwrite=overwrite)
        return mark if mark.named else None

    def recheck(self, target: Target) -> AdapterState | None:
        """See `Training.recheck`."""
        refuse_new_recipes(self.plan, target.request)
        if is_as_planned(target):
            if target.existing in KEPT:
                note = OVERWRITTEN if self.plan.call.overwrite else RETRAINED
                mark = Bookmark.waiting(len(target.images.names)).with_fields(note=note)
                self.tracker.record(target.adapter.key, **mark.to_json())
            aside = target.folder.set_aside(target.existing)
            self.display.say(
                printable(f"{self.plan.name_of(target)}: {target.existing} adapter set aside in {aside}")
            )
            return None
        found = target.judge()
        if found.state is State.BROKEN:
            target.folder.set_aside(State.BROKEN)
            return None
        return self._by_others(target, found, read_bookmarks(self.tracker))

    def done_by_others(self, trainings: Sequence[Training]) -> list[tuple[Training, AdapterState]]:
        """Return those that other calls have ended since the plan was made, and how; changes nothing."""
        marks, ended = read_bookmarks(self.tracker), []
        for training in trainings:
            target = training.target
            has_failed = self.news(training.key, marks).status is State.FAILED
            is_changed = has_failed or target.folder.weights_identity() != target.weights
            if is_changed and not is_as_planned(target):
                found = self._by_others(target, target.judge(), marks)
                if found is not None:
                    ended.append((training, found))
        return ended

    def _by_others(
        self, target: Target, found: AdapterState, marks: Mapping[str, Bookmark]
    ) -> AdapterState | None:
        """Return how another call has ended a target since the plan was made; None when none has."""
        if found.state in KEPT:
            reason = f", {found.reason}" if found.reason else ""
            return AdapterState(found.state, f"{found.state}: trained {ELSEWHERE}{reason}")
        mark = self.news(target.adapter.key, marks)
        if found.state is State.WAITING and mark.status is State.FAILED:
            return AdapterState(State.FAILED, f"{mark.error} ({ELSEWHERE})")
        return None

    def news(self, key: str, marks: Mapping[str, Bookmark] | None = None) -> Bookmark:
        """Return a bookmark, if another call has changed it since this one began; else an empty one.

        Args:
            marks: the bookmarks as they are now; by default they are read.
        """
        mark = (read_bookmarks(self.tracker) if marks is None else marks).get(key, Bookmark())
        return Bookmark() if mark == self._marked.get(key, Bookmark()) else mark

    def ended(self, one: Training, end: JobEnd) -> None:
        """Record and say how a training ended."""
        one.over(well=end.state is State.COMPLETE and not end.elsewhere)
        # Failures that differ in the adapter only are alike.
        folder = one.target.folder.path
        failure = end.error.replace(str(folder), "").replace(folder.name, "")
        self._ends.append((end.where, (failure or "failed") if end.state is State.FAILED else ""))
        if end.elsewhere:
            self._done_elsewhere(one, end)
        elif end.state in KEPT:
            self._completed(one, end)
        else:
            self._not_complete(one, end)

    def stopped(self, one: Training, end: JobEnd) -> None:
        """Record a training that ended because this program is stopped."""
        one.paused()
        self._record_end(one, end)

    def queued(self, one: Training, remark: str) -> None:
        """Note that a training goes on without this program."""
        one.paused()
        self.results.append(Result(target=one.target, state=State.QUEUED, error=remark))

    def _done_elsewhere(self, one: Training, end: JobEnd) -> None:
        result = Result(target=one.target, state=end.state, error=end.error)
        self.results.append(result)
        one.say(f"{result.word}, {end.error}")
        if end.state is not State.FAILED:
            self._correct(one, complete_bookmark(self.plan.call.tree, one.target.folder))

    def _not_complete(self, one: Training, end: JobEnd) -> None:
        words = f"{end.state}: {end.error}"
        if end.state is State.INTERRUPTED:
            words = f"interrupted, {end.error}; the same command takes it up"
        one.say(words + (f"; see {printable(end.log)}" if end.log else ""))
        for line in end.log_lines if end.state is State.FAILED else ():
            self.display.say(f"    | {line}")
        self._record_end(one, end)

    def _record_end(self, one: Training, end: JobEnd) -> None:
        warnings = self._say_warnings(one, end)
        seconds = 0.0 if end.recorded else round(one.seconds, 1)
        result = Result(
            target=one.target, state=end.state, seconds=seconds, error=end.error, warnings=warnings
        )
        # If the tracker cannot be written the batch ends, and its summary must have the result.
        self.results.append(result)
        if end.recorded:
            # An adapter that was to be replaced is as good as before.
            if not is_as_planned(one.target):
                self._correct(one, Bookmark.ended(end.state, error=end.error))
            return
        mark = Bookmark.ended(
            end.state,
            started_at=one.started_at,
            seconds=seconds,
            steps=end.steps,
            error=end.error,
            log=log_path(self.plan.call.tree, one.target.folder),
        )
        self.tracker.record(one.key, **mark.to_json())

    def _correct(self, one: Training, mark: Bookmark) -> None:
        settled = (State.COMPLETE,) if mark.status is State.COMPLETE else (State.FAILED, State.BLOCKED)
        if read_bookmarks(self.tracker).get(one.key, Bookmark()).status not in settled:
            self.tracker.record(one.key, **mark.to_json())

    def _say_warnings(self, one: Training, end: JobEnd) -> tuple[str, ...]:
        run = one.target.folder.readable_run
        known = {*one.target.warnings, *one.target.inputs.notes, describe_differences(run.other_numerics)}
        warnings = tuple(warning for warning in end.warnings if warning not in known)
        for warning in warnings:
            one.say(f"warning: {warning}")
        return warnings

    def _completed(self, one: Training, end: JobEnd) -> None:
        target, run = one.target, one.target.folder.readable_run
        mark = complete_bookmark(self.plan.call.tree, target.folder)
        seconds, earlier = mark.seconds or 0.0, 0.0
        if not end.recorded:
            # Start and end of the programs around the training count as well.
            seconds, earlier = one.seconds, run.earlier_seconds
            mark = mark.with_fields(seconds=round(earlier + seconds, 1))
            if run.resumed_from is None:
                mark = mark.with_fields(started_at=one.started_at)
        warnings = self._say_warnings(one, end)
        hub, evaluation = mark.hub or {}, eval_change(mark.eval_loss)
        numerics = describe_differences(mark.other_numerics or {})
        facts = [
            f"{end.state} in {duration(seconds)}",
            "" if run.resumed_from is None else f"resumed at step {run.resumed_from}",
            "" if mark.loss is None else f"mean loss {mark.loss:.4f}",
            end.error,
            evaluation,
            numerics,
            f"uploaded to {hub['repository_id']}" if "repository_id" in hub else "",
        ]
        one.say(", ".join(filter(None, facts)))
        result = Result(
            target=target,
            state=end.state,
            trained=end.state is State.COMPLETE,
            seconds=seconds,
            earlier_seconds=earlier,
            loss=mark.loss,
            error=end.error,
            # The adapter is whole, so what went wrong came after it.
            owed=str(hub.get("error", "")) or (f"unknown, exit code {end.code}" if end.code else ""),
            evaluation=evaluation,
            numerics=numerics,
            warnings=warnings,
        )
        self.results.append(result)
        if end.recorded:
            self._correct(one, mark)
        else:
            self.tracker.record(one.key, **mark.to_json())


def is_as_planned(target: Target) -> bool:
    """Return whether the adapter that the plan saw, and wants to be trained again, is still there."""
    if target.existing is State.WAITING:
        return False
    return target.folder.weights_identity() == target.weights


def repair(folder: AdapterFolder) -> str:
    """Repair the folder of a complete adapter, unless a call works there; return what was repaired.

    Leftovers of killed processes are removed, and a damaged adapter_config.json is written again. A folder
    that may not be written stays as it is, and so does one that another call has emptied meanwhile.
    """
    with suppress(MimicryError, OSError):
        fault = folder.config_fault()
        if fault or (folder.path / CLAIM).exists() or folder.leftovers() or folder.spent_checkpoints():
            with Claim.take_anew(folder.path):
                folder.remove([*folder.leftovers(), *folder.spent_checkpoints()])
                if fault:
                    folder.write_config()
                    return f"{fault}; it was written again"
    return ""


def same_failure(failures: list[str]) -> bool:
    """Return whether the last failures are alike, so that the others would fail as well."""
    last = failures[-SAME_FAILURES:]
    return len(last) == SAME_FAILURES and len(set(last)) == 1 and last[0] != ""
