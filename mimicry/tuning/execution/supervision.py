"""Following a training from outside: the lines of metrics.jsonl as they come, and the end."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mimicry.common.errors import TrainingFailed
from mimicry.common.processes import Child

POLL_SECONDS = 0.2


class MetricsReader:
    """Reads the lines that were added to a metrics.jsonl since the last look, or since this was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = self._size()
        self._first_line = self._read_first_line()

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the new whole lines.

        A file that was cut back holds old lines only where a run goes on from a checkpoint, which its first
        line tells; the file of a new run is read from its beginning.
        """
        size = self._size()
        if size < self._offset:
            former, self._first_line = self._first_line, self._read_first_line()
            self._offset = size if former and self._first_line == former else 0
        if size == self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        self._first_line = self._first_line or self._read_first_line()
        return [found for line in whole.splitlines() if (found := _parsed(line)) is not None]

    def _read_first_line(self) -> bytes:
        """Return the first line with its newline; nothing while it is not whole."""
        try:
            with self._path.open("rb") as file:
                line = file.readline()
        except FileNotFoundError:
            return b""
        return line if line.endswith(b"\n") else b""

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size  # noqa: PTH116 - five times a second
        except FileNotFoundError:
            return 0


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics; None for the rest of one.

    A file that was cut back, and has grown beyond where it was since the last look, is read from the midst of
    a line.
    """
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class StallGuard:
    """Knows since when a training has shown no sign of life."""

    def __init__(self, log: Path, stall_seconds: float) -> None:
        self._log = log
        self._log_size = -1
        self._limit = stall_seconds
        self._alive = time.monotonic()
        self._has_steps = False
        self.log_grew = False

    def check(self, stepped: bool) -> None:
        """Note whether there was a new step.

        Before the first step a growing log counts as well: a download takes its time, and says so.

        Raises:
            TrainingFailed: there was no sign of life for too long.
        """
        now = time.monotonic()
        self._has_steps = self._has_steps or stepped
        size = self._log.stat().st_size if self._log.exists() else 0
        if stepped or (not self._has_steps and size != self._log_size):
            self._alive = now
        self.log_grew = size != self._log_size
        self._log_size = size
        if now - self._alive > self._limit:
            raise TrainingFailed(
                f"no step for {self._limit / 60:g} minutes; see the log, and --stall-minutes for the limit"
            )


def follow(
    child: Child,
    metrics: MetricsReader,
    on_step: Callable[[dict[str, Any]], None],
    guard: StallGuard | None = None,
) -> int:
    """Tell `on_step` each new line of metrics until the child ends; return its exit code.

    Raises:
        TrainingFailed: `guard` saw no sign of life for too long; the child still runs.
    """
    while True:
        code = child.wait(POLL_SECONDS)
        lines = metrics.new_lines()
        for line in lines:
            on_step(line)
        if code is not None:
            return code
        if guard is not None:
            guard.check(stepped=bool(lines))
