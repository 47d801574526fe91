"""How a training is getting on and how it ended, told from the files that it leaves.

The exit code says little: the launcher turns every exit code of the trainer into 1.
"""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken, TrainingFailed, disk_fault
from mimicry.common.files import utc_now, write_json
from mimicry.common.processes import Child, last_lines
from mimicry.common.tokens import mask_token
from mimicry.study import Captions, ImageRecord, State, described_images, refuse_changed_images
from mimicry.tuning.adapters import AdapterFolder, TrainingRun
from mimicry.tuning.planning import Target

POLL_SECONDS = 0.2
# With less than this on the disk, a training cannot even say that it failed.
_ROOM_BYTES = 1 << 16
# How lines of our programs begin in the log.
_ERROR = "error: "
_STOPPED_BY = "stopped by "


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
    """Return a line of metrics; None for the rest of one."""
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


@dataclass(frozen=True)
class Attempt:
    """One attempt at training in `folder`: made before it begins, it tells its traces from older ones."""

    folder: AdapterFolder
    log_offset: int
    began: float = field(default_factory=time.time)

    @classmethod
    def begin(cls, folder: AdapterFolder) -> "Attempt":
        """Note what lies there, and make the folder.

        Raises:
            TrainingFailed: the folder cannot be made.
        """
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingFailed(f"{folder} cannot be made: {error.strerror}") from error
        return cls(folder, folder.log.stat().st_size if folder.log.exists() else 0)

    def failure(self, code: int) -> str | None:
        """Return why there is no complete adapter after this attempt; None when there is one."""
        mask_token(self.folder.log)
        run = self._own_run()
        if self.folder.has_weights:
            try:
                AdapterFolder(self.folder.path, self.folder.form).check(rank=None)
            except AdapterBroken as error:
                self.folder.set_aside(State.BROKEN)
                return str(error)
            return None
        stalled = self._watchers_error()
        if stalled:
            return stalled
        if run.error:
            return run.error
        if shutil.disk_usage(self.folder.path).free < _ROOM_BYTES:
            # No process could write down what went wrong.
            return disk_fault(OSError(errno.ENOSPC, "", str(self.folder)))
        if run.status == State.RUNNING:
            return (
                "the trainer was killed and had no time to say why; when memory is short the system does "
                "that: see `dmesg | tail`"
            )
        lines = self.log_lines(200)
        errors = [line for line in lines if line.startswith(_ERROR)]
        if errors:
            return errors[-1].removeprefix(_ERROR)
        if self.stopped_by() is not None:
            return lines[-1]
        return f"exit code {code} and no adapter" + (f": {lines[-1]}" if lines else "")

    @property
    def blocked(self) -> bool:
        """Whether this attempt was refused: see `failure` for the reason."""
        return self._own_run().status == State.BLOCKED

    def stopped_by(self) -> int | None:
        """Return the number of the signal that stopped the trainer; None when it did not end that way.

        Its record says so; the log does of one that was stopped before it began a record.
        """
        run = self._own_run()
        words = "".join(self.log_lines(1))
        if run.content:
            words = str(run.error) if run.status == State.INTERRUPTED else ""
        if not words.startswith(_STOPPED_BY) or self._watchers_error():
            return None
        return signal.Signals.__members__.get(words.removeprefix(_STOPPED_BY))

    def steps(self) -> int:
        """Return the optimizer steps that the trainer says it took; 0 where it says nothing."""
        return self._own_run().steps

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings that the record of this attempt tells of."""
        return tuple(self._own_run().warnings)

    def log_lines(self, count: int) -> list[str]:
        """Return the last lines that this attempt wrote to the log."""
        return last_lines(self.folder.log, count, self.log_offset)

    def _watchers_error(self) -> str:
        """Say why the supervisor stopped the trainer, for which that was a signal like any other."""
        last = "".join(self.log_lines(1))
        interrupted = self._own_run().status == State.INTERRUPTED
        return last.removeprefix(_ERROR) if interrupted and last.startswith(_ERROR) else ""

    def _own_run(self) -> TrainingRun:
        try:
            # File times are coarser than the clock.
            if self.folder.record.stat().st_mtime < self.began - 1:
                return TrainingRun({})
        except OSError:
            return TrainingRun({})
        return AdapterFolder(self.folder.path).readable_run


@dataclass(frozen=True)
class UnrecordedTraining:
    """What is known of a training before it begins, in case the stack does not record it."""

    target: Target
    images: list[ImageRecord]
    captions: Captions | None
    started_at: str = field(default_factory=utc_now)
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, target: Target) -> "UnrecordedTraining":
        """Note the images and captions as they are now.

        Raises:
            OSError: one cannot be read.
        """
        return cls(target, target.images.records(), target.captions())

    def record_if_missing(self, steps: int) -> None:
        """Write the training_run.json of a whole adapter whose stack has left none.

        Raises:
            TrainingFailed: the images were changed meanwhile, or the adapter is not what was asked for; it
                was set aside.
        """
        target, folder = self.target, self.target.folder
        if folder.record.exists():
            return
        try:
            refuse_changed_images(target.images, self.images)
        except TrainingFailed:
            # Without a record it would count as complete.
            folder.set_aside(State.STALE)
            raise
        spec = target.request.spec
        try:
            adapter = folder.check(spec.rank)
        except AdapterBroken as error:
            folder.set_aside(State.BROKEN)
            raise TrainingFailed(str(error)) from error
        reading = target.request.config.reading
        described, marks = described_images(target.pairing, self.captions, reading)
        record: dict[str, Any] = {
            "schema": 1,
            "stack": target.request.stack.name,
            "recipe": spec.recipe,
            "recipe_hash": spec.recipe_hash,
            "images": described,
            "unpaired": marks,
            "warnings": [*target.warnings, *target.notes],
            "status": State.COMPLETE,
            "started_at": self.started_at,
            "finished_at": utc_now(),
            "seconds": round(time.monotonic() - self.started, 3),
            "steps": steps,
            "weights": adapter.record(),
        }
        write_json(folder.record, {key: value for key, value in record.items() if value is not None})
