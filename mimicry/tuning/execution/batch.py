"""Training the targets of a plan one after the other, and keeping book of it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mimicry.common.children import Interrupted, running_child
from mimicry.common.claims import Claim, claimed_by
from mimicry.common.errors import (
    BatchFault,
    ClaimedElsewhere,
    ClaimLost,
    MimicryError,
    TrainingFailed,
    disk_fault,
    report,
)
from mimicry.common.files import utc_now
from mimicry.common.text import printable
from mimicry.study.tracker import BookmarkStatus, ProgressTracker
from mimicry.tuning.adapters.folder import METRICS, TRAIN_LOG
from mimicry.tuning.adapters.numerics import told
from mimicry.tuning.adapters.state import Existing, State
from mimicry.tuning.execution.attempt import Attempt
from mimicry.tuning.execution.bookmarks import complete_bookmark, log_path
from mimicry.tuning.execution.sharing import found_meanwhile, set_aside_as_planned, tidy
from mimicry.tuning.execution.supervision import MetricsReader, StallGuard, follow
from mimicry.tuning.planning.plan import OVERWRITTEN, Action, Plan, Target
from mimicry.tuning.reports.progress import BatchDisplay, StepDisplay, duration, eval_change

# The wrapper gives its own child fifteen seconds.
_GRACE_SECONDS = 20.0
_SAME_FAILURES = 3
# Between two looks at artists that others train.
WAIT_SECONDS = 2.0
_SHOWN_LOG_LINES = 12
# What a bookmark says of a former training: it would be taken for news of the one to come.
_OF_ONE_RUN = (
    "started_at",
    "seconds",
    "steps",
    "loss",
    "eval_loss",
    "other_numerics",
    "resumed_from",
    "hub",
    "error",
)

OnStep = Callable[[dict[str, Any]], None]


class Executor(Protocol):
    """Where and how a target is trained."""

    def command(self, target: Target) -> list[str]:
        """Return the exact command that trains `target`."""

    def train(self, target: Target, on_step: OnStep, claim: Claim) -> int:
        """Train `target`, tell `on_step` each line of its metrics, and return an exit code.

        Args:
            claim: ours, to the folder of the adapter; whoever trains joins it.

        Raises:
            TrainingFailed: it was stopped, with the reason.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """Trains on this machine, in a child process whose output goes to train.log."""

    make_command: Callable[[Target], list[str]]
    stall_seconds: float

    def command(self, target: Target) -> list[str]:
        return self.make_command(target)

    def train(self, target: Target, on_step: OnStep, claim: Claim) -> int:
        log = target.output_dir / TRAIN_LOG
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | claim.variable()
        metrics = MetricsReader(target.output_dir / METRICS)
        with (
            log.open("ab") as output,
            running_child(
                self.command(target), output=output, environment=environment, grace_seconds=_GRACE_SECONDS
            ) as child,
        ):
            code = follow(child, metrics, on_step, StallGuard(log, self.stall_seconds))
        # A wrapper that was killed leaves a trainer that notices, and takes a moment to end.
        claim.wait_for_others(_GRACE_SECONDS)
        return code


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one target. `error` is empty for a good end; `owed` says why an upload failed.

    `evaluation` is the loss on the original art before and after, in words; empty when there was none.
    `numerics` says in what the adapter's numerics differ from those of its sisters.
    """

    target: Target
    outcome: str
    seconds: float = 0.0
    loss: float | None = None
    error: str = ""
    owed: str = ""
    evaluation: str = ""
    numerics: str = ""


@dataclass
class Batch:
    """A plan being carried out, beside other calls on the same tree (see `sharing`).

    `step_count` returns the optimizer steps of an artist with so many images, `judge` what lies in the folder
    of an adapter now. With `wait`, the end is put off until the artists that others train are done.
    """

    plan: Plan
    executor: Executor
    tracker: ProgressTracker
    display: BatchDisplay
    step_count: Callable[[int], int]
    judge: Callable[[Target], Existing]
    wait: bool = True
    results: list[Result] = field(default_factory=list)
    _alike: list[str] = field(default_factory=list)
    # The bookmarks as this call left them before its first training.
    _marked: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Train all targets that are to be trained.

        Raises:
            Interrupted: a stop signal came; the artist in training is marked as interrupted.
        """
        self.prepare()
        todo, elsewhere = self.plan.of(Action.TRAIN), self.plan.of(Action.CLAIMED)
        for number, target in enumerate(todo, start=1):
            result = self._claim_and_train(target, f"[{number}/{len(todo)}] {printable(str(target.artist))}")
            if result is None:
                self.display.say(
                    printable(f"{target.artist}: {claimed_by(target.output_dir)}; looked at again later")
                )
                elsewhere.append(target)
                continue
            self.results.append(result)
            self.display.advance()
            if self._same_failure_again():
                self.display.say(
                    f"{_SAME_FAILURES} artists in a row failed alike; the other {len(todo) - number} are "
                    f"left for the next call of the same command"
                )
                return
        self._look_again(elsewhere)

    def _look_again(self, elsewhere: list[Target]) -> None:
        """See what becomes of artists that others train, and train those that were left."""
        said = False
        while elsewhere:
            for target in [target for target in elsewhere if not claimed_by(target.output_dir)]:
                result = self._claim_and_train(target, printable(str(target.artist)))
                if result is not None:
                    self.results.append(result)
                    elsewhere.remove(target)
            if not elsewhere or not self.wait:
                break
            if not said:
                said = True
                for target in elsewhere:
                    self.display.say(printable(f"{target.artist}: waiting, {claimed_by(target.output_dir)}"))
                self.display.say("type --no-wait for not waiting until others are done")
            time.sleep(WAIT_SECONDS)
        self.results += [
            Result(target=target, outcome="claimed", error=claimed_by(target.output_dir))
            for target in elsewhere
        ]

    def prepare(self) -> None:
        """Write down what is to come, then set aside the adapters that are to be trained again.

        Raises:
            BatchFault: the tracker cannot be written, so nothing is done.
        """
        marks: dict[str, dict[str, Any]] = {}
        known = self.tracker.bookmarks()
        for target in self.plan.targets:
            key = self.plan.request.key(target.artist)
            if target.action is Action.BLOCKED:
                marks[key] = {"status": BookmarkStatus.BLOCKED, "error": target.reason}
            elif target.action is Action.TRAIN:
                replaced = target.existing in (State.COMPLETE, State.STALE)
                note = {"note": OVERWRITTEN} if replaced else {}
                images = len(target.images.names)
                former = dict.fromkeys(_OF_ONE_RUN)
                marks[key] = {**former, "status": BookmarkStatus.PENDING, "images": images, **note}
            elif known.get(key, {}).get("status") != BookmarkStatus.COMPLETE:
                marks[key] = complete_bookmark(self.plan.request.tree, target.output_dir)
        try:
            self.tracker.record_many(marks)
        except MimicryError as error:
            raise BatchFault(*error.problems) from error
        self._marked = {**known, **marks}
        for target in self.plan.targets:
            if target.action in (Action.COMPLETE, Action.STALE):
                mended = tidy(target.output_dir)
                if mended:
                    self.display.say(printable(f"{target.artist}: {mended}"))
            elif target.action is Action.TRAIN and target.existing is not State.ABSENT:
                aside = set_aside_as_planned(target)
                if aside is not None:
                    self.display.say(
                        printable(f"{target.artist}: {target.existing.value} adapter set aside in {aside}")
                    )

    def _claim_and_train(self, target: Target, label: str) -> Result | None:
        """Train a target that is still to be trained; None, when another call works on it."""
        try:
            with Claim.take_anew(target.output_dir) as claim:
                return self._done_elsewhere(target, label) or self._train(target, label, claim)
        except (ClaimedElsewhere, ClaimLost):
            return None

    def _done_elsewhere(self, target: Target, label: str) -> Result | None:
        key = self.plan.request.key(target.artist)
        bookmark = self.tracker.bookmarks().get(key, {})
        found = found_meanwhile(target, self.judge, self._marked.get(key, {}), bookmark)
        if found is None:
            return None
        self.display.say(f"{label}: {found.outcome}, {found.words}")
        if found.outcome == "skipped" and bookmark.get("status") != BookmarkStatus.COMPLETE:
            self.tracker.record(key, **complete_bookmark(self.plan.request.tree, target.output_dir))
        if found.outcome == "failed":
            self._alike.append(found.words)
        return Result(target=target, outcome=found.outcome, error=found.words)

    def _train(self, target: Target, label: str, claim: Claim) -> Result:
        self.display.say(f"{label}: training on {len(target.images.names)} images")
        begin, started_at, last_step = time.monotonic(), utc_now(), 0
        step_count = self.step_count(len(target.images.names))
        steps = StepDisplay(target.artist.name, step_count, position=1)

        def on_step(line: dict[str, Any]) -> None:
            nonlocal last_step
            last_step = int(line["step"])
            steps.step(line)
            self.display.step(last_step)

        def ended(status: BookmarkStatus, error: str) -> Result:
            seconds = round(time.monotonic() - begin, 1)
            result = Result(target=target, outcome=status.value, seconds=seconds, error=error)
            self._record(
                result,
                self.plan.request.key(target.artist),
                status=status,
                started_at=started_at,
                seconds=seconds,
                steps=max(last_step, 0 if attempt is None else attempt.steps()),
                error=error,
                log=log_path(self.plan.request.tree, target.output_dir),
            )
            return result

        attempt: Attempt | None = None
        stopped_by: int | None = None
        try:
            attempt = Attempt.begin(target.output_dir)
            code = self.executor.train(target, on_step, claim)
            claim.check()
            failure, stopped_by = attempt.failure(code), attempt.stopped_by()
        except TrainingFailed as stopped:
            failure = str(stopped)
        except OSError as error:
            failure = disk_fault(error) or f"{target.output_dir}: {error.strerror}"
        except Interrupted as stop:
            try:
                self.results.append(ended(BookmarkStatus.INTERRUPTED, f"stopped by {stop}"))
            except MimicryError as error:  # who stops us wants to hear of that first
                report(error)
            raise
        finally:
            steps.close()
        if failure is None:
            return self._completed(target, label, time.monotonic() - begin, started_at, code)
        if attempt is not None and attempt.blocked:
            self.display.say(f"{label}: blocked: {failure}")
            return ended(BookmarkStatus.BLOCKED, failure)
        if stopped_by is not None:
            self.display.say(f"{label}: interrupted, {failure}; the same command takes it up")
            return ended(BookmarkStatus.INTERRUPTED, failure)
        self._show_failure(label, target, failure, attempt)
        return ended(BookmarkStatus.FAILED, failure)

    def _record(self, result: Result, key: str, **fields: Any) -> None:
        """Record a bookmark; if that fails, the batch ends, and its summary must have the result."""
        try:
            self.tracker.record(key, **fields)
        except MimicryError:
            self.results.append(result)
            raise

    def _completed(self, target: Target, label: str, seconds: float, started_at: str, code: int) -> Result:
        mark = complete_bookmark(self.plan.request.tree, target.output_dir)
        if mark.get("resumed_from") is None:
            # Start and end of the programs around the training count as well.
            mark |= {"started_at": started_at, "seconds": round(seconds, 1)}
        hub = mark.get("hub") or {}
        loss, evaluation = mark["loss"], eval_change(mark["eval_loss"])
        numerics = told(mark["other_numerics"] or {})
        # The adapter is whole, so what went wrong came after it.
        owed = str(hub.get("error", "")) or (f"unknown, exit code {code}" if code else "")
        self.display.say(
            f"{label}: complete in {duration(seconds)}"
            + (f", mean loss {loss:.4f}" if loss is not None else "")
            + (f", {evaluation}" if evaluation else "")
            + (f", {numerics}" if numerics else "")
            + (f", uploaded to {hub['repository_id']}" if "repository_id" in hub else "")
        )
        result = Result(
            target=target,
            outcome="trained",
            seconds=seconds,
            loss=loss,
            owed=owed,
            evaluation=evaluation,
            numerics=numerics,
        )
        self._record(result, self.plan.request.key(target.artist), **mark)
        return result

    def _show_failure(self, label: str, target: Target, failure: str, attempt: Attempt | None) -> None:
        output_dir = target.output_dir
        self._alike.append(failure.replace(str(output_dir), "").replace(output_dir.name, ""))
        self.display.say(f"{label}: failed: {failure}")
        for line in attempt.log_lines(_SHOWN_LOG_LINES) if attempt else []:
            self.display.say(f"    | {line}")

    def _same_failure_again(self) -> bool:
        last = [result.outcome for result in self.results[-_SAME_FAILURES:]]
        return last == ["failed"] * _SAME_FAILURES and len(set(self._alike[-_SAME_FAILURES:])) == 1
