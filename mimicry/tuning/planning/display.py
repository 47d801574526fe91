"""What a person sees of trainings: tqdm bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from tqdm import tqdm

from mimicry.common.text import message_lines, printable
from mimicry.study import EvaluatedOn, Progress

# Without a terminal there is a line for each twentieth of the steps, and not more often than this.
_PLAIN_PARTS = 20
_PLAIN_SECONDS = 5.0
_BEFORE_STEPS = "{desc} [{elapsed}]"


def is_terminal() -> bool:
    return sys.stderr.isatty()


class StepDisplay:
    """One training: what it does before its first step, then its steps with loss and time left."""

    def __init__(self, label: str, total: int, position: int = 0) -> None:
        self._label = printable(label)
        self._total = total
        self._first: tuple[int, float] | None = None
        self._spoken = time.monotonic()
        self._part = 0
        self.bar: tqdm[Any] | None = None
        if is_terminal():
            self.bar = tqdm(
                total=total,
                desc=f"{self._label}: starting",
                unit="step",
                position=position,
                leave=False,
                bar_format=_BEFORE_STEPS,
            )

    def phase(self, text: str) -> None:
        if self.bar is not None and self._first is None:
            self.bar.set_description_str(f"{self._label}: {printable(text)}"[: self.bar.ncols or 100])

    def tick(self) -> None:
        if self.bar is not None and self._first is None:
            _refresh(self.bar)

    def step(self, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl; one of an evaluation has no loss of a step."""
        if "loss" not in line:
            return
        number, loss = int(line["step"]), float(line["loss"])
        if self._first is None:
            self._first = number, time.monotonic()
            if self.bar is not None:
                self.bar.bar_format = None
                self.bar.set_description_str(self._label, refresh=False)
                # Steps before a resumption, and the start, took none of the time that steps take.
                self.bar.initial = self.bar.n = number - 1
                self.bar.start_t = self.bar.last_print_t = time.time()
                self.bar.refresh()
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update(number - self.bar.n)
        else:
            self._say(number, loss)

    def _say(self, number: int, loss: float) -> None:
        part, now = _PLAIN_PARTS * number // self._total, time.monotonic()
        if part == self._part or now - self._spoken < _PLAIN_SECONDS:
            return
        self._part, self._spoken = part, now
        first, began = self._first or (number, now)
        left = ""
        if number > first:
            left = f", {duration((now - began) / (number - first) * (self._total - number))} left"
        clock = datetime.now().astimezone().strftime("%H:%M:%S")
        print(f"{clock} {self._label}: step {number}/{self._total}, loss {loss:.4f}{left}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@dataclass
class _Course:
    """How far a training is: its steps in all, those taken, when it began and took its first step."""

    count: int
    began: float
    steps: int = 0
    latest: float = 0.0
    first: tuple[int, float] | None = None

    def take(self, number: int, now: float) -> None:
        """Note step `number`, counted from 1; 0 is before the first one."""
        self.steps, self.latest = number, now
        if number and self.first is None:
            self.first = number, now

    def expected_seconds(self) -> float | None:
        """Return what one like it takes in all, from 0; None before its second step."""
        if self.first is None or self.steps <= self.first[0]:
            return None
        number, at = self.first
        return at - self.began + (self.latest - at) / (self.steps - number) * (self.count - 1)


class BatchDisplay:
    """The trainings of a batch with the time that is left: a bar of all steps, in a terminal.

    What is left is reckoned from those that ended well; before there are any, from the seconds of `known`
    ones; without these, from the steps of the present one.
    """

    def __init__(self, step_counts: Sequence[int], known: Sequence[float] = (), workers: int = 1) -> None:
        self._counts = list(step_counts)
        self._known = list(known)
        self._workers = workers
        self._finished: list[float] = []
        self._ended = 0
        self._ended_steps = 0
        self._running: dict[str, _Course] = {}
        self.bar: tqdm[Any] | None = None
        if is_terminal() and self._counts:
            self.bar = tqdm(
                total=sum(self._counts),
                position=0,
                bar_format="{desc} |{bar}| {percentage:.0f}% [{elapsed}{postfix}]",
            )
            self._show()

    def say(self, text: str) -> None:
        """Print a line, or a message of several, without tearing the bars."""
        text = message_lines(text)
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def begin(self, key: str, step_count: int) -> None:
        self._running[key] = _Course(step_count, time.monotonic())
        self._show()

    def step(self, key: str, number: int) -> None:
        self._running[key].take(number, time.monotonic())
        self._show()

    def end(self, key: str, *, well: bool) -> None:
        """Show that a training is over; how long one took that ended well tells what others will take."""
        course = self._running.pop(key)
        if well:
            self._finished.append(time.monotonic() - course.began)
        self._ended += 1
        self._ended_steps += course.count
        self._show()

    def leave(self, key: str) -> None:
        """Show a training no longer that has stopped and may begin again."""
        del self._running[key]
        self._show()

    def tick(self) -> None:
        if self.bar is not None:
            _refresh(self.bar)

    def seconds_left(self) -> float | None:
        """Return how long all that is left will take; None while nothing tells it."""
        now = time.monotonic()
        each = self._finished or self._known
        furthest = max(self._running.values(), key=lambda course: course.steps / course.count, default=None)
        by_steps = None if furthest is None else furthest.expected_seconds()
        expected = fmean(each) if each else by_steps
        if expected is None:
            return None
        begun = [max(0.0, expected - (now - course.began)) for course in self._running.values()]
        waiting = max(0, len(self._counts) - self._ended - len(begun))
        # A cluster may run more than was known. However many work, each training is the work of one.
        workers = max(self._workers, len(begun))
        return max([(expected * waiting + sum(begun)) / workers, *begun])

    def time_left(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else f"about {duration(seconds)} left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _show(self) -> None:
        if self.bar is None:
            return
        taken = self._ended_steps + sum(course.steps for course in self._running.values())
        self.bar.set_description_str(f"trainings {self._ended}/{len(self._counts)}", refresh=False)
        self.bar.set_postfix_str(self.time_left(), refresh=False)
        self.bar.update(taken - self.bar.n)


def _refresh(bar: "tqdm[Any]") -> None:
    if time.time() - bar.last_print_t >= 1.0:
        bar.last_print_t = time.time()
        bar.refresh()


@contextmanager
def checking_bar() -> Iterator[Progress]:
    bar: tqdm[Any] | None = None

    def show(done: int, count: int) -> None:
        nonlocal bar
        if bar is None and is_terminal():
            bar = tqdm(total=count, desc="checking images", unit="image", leave=False)
        if bar is not None:
            bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, or m:ss below an hour."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def eval_change(value: Any) -> str:
    """Return the `eval_loss` of a training_run.json in words; empty when nothing was evaluated."""
    try:
        on = value.get("on")
        where = f" ({on})" if on in (EvaluatedOn.HELD_OUT, EvaluatedOn.IN_SAMPLE) else ""
        return f"eval {value['start']:.3f} -> {value['end']:.3f}{where}"
    except (AttributeError, KeyError, TypeError, ValueError):  # skipped, not there, or another program's
        return ""
