"""What a person sees of a training: tqdm bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from mimicry.common.text import message_lines, printable
from mimicry.study.image_checks import Progress

# Between two lines about the steps of one artist, when there is no terminal.
_PLAIN_SECONDS = 60.0


def is_terminal() -> bool:
    """Return whether progress bars make sense: standard error goes to a terminal."""
    return sys.stderr.isatty()


class StepDisplay:
    """The steps of one artist with the loss: a bar, or a line a minute."""

    def __init__(self, label: str, total: int, position: int = 0) -> None:
        self._label = printable(label)
        self._total = total
        self._spoken = time.monotonic()
        self.bar: tqdm[Any] | None = None
        if is_terminal():
            self.bar = tqdm(total=total, desc=self._label, unit="step", position=position, leave=False)

    def step(self, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl; one of an evaluation has no loss of a step."""
        if "loss" not in line:
            return
        number, loss = int(line["step"]), float(line["loss"])
        if self.bar is not None:
            if self.bar.n == 0:
                # Steps before a resumption took none of the time that the estimate is made from.
                self.bar.initial = self.bar.n = number - 1
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update(number - self.bar.n)
        elif time.monotonic() - self._spoken >= _PLAIN_SECONDS:
            self._spoken = time.monotonic()
            print(f"{self._label}: step {number}/{self._total}, loss {loss:.4f}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class BatchDisplay:
    """The artists of a batch with the time that is left: a bar, or nothing where there is no terminal.

    The bar counts the steps of all artists, so that there is an estimate before the first one is done.
    """

    def __init__(self, artist_count: int, steps_each: int) -> None:
        self._artist_count = artist_count
        self._steps_each = steps_each
        self._done = 0
        self._begun = False
        self.bar: tqdm[Any] | None = None
        if is_terminal() and artist_count:
            self.bar = tqdm(
                total=artist_count * steps_each,
                position=0,
                smoothing=0,
                bar_format="{desc} |{bar}| {percentage:.0f}% [{elapsed}, {remaining} left]",
            )
            self._show(0)

    def say(self, text: str) -> None:
        """Print a line, or a message of several, without tearing the bars."""
        text = message_lines(text)
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def step(self, number: int) -> None:
        """Show that the present artist is at step `number`."""
        if self.bar is not None and not self._begun:
            # As above: these steps were taken by an earlier run.
            self.bar.initial += number - 1
        self._begun = True
        self._show(number)

    def advance(self) -> None:
        """Show that one more artist is done, well or not."""
        self._done += 1
        self._begun = False
        self._show(0)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _show(self, step: int) -> None:
        if self.bar is not None:
            self.bar.set_description_str(f"artists {self._done}/{self._artist_count}", refresh=False)
            self.bar.update(self._done * self._steps_each + step - self.bar.n)


@contextmanager
def checking_bar() -> Iterator[Progress]:
    """Yield what shows how many images were checked, of how many: a bar in a terminal."""
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
        where = " (in-sample)" if value.get("on") == "in-sample" else ""
        return f"eval {value['start']:.3f} -> {value['end']:.3f}{where}"
    except (AttributeError, KeyError, TypeError, ValueError):  # skipped, not there, or another program's
        return ""
