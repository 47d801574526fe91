"""How a training ended, told from what it left: the exit code alone says little (see design.md)."""

import errno
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimicry.common.children import last_lines
from mimicry.common.errors import AdapterBroken, TrainingFailed, disk_fault
from mimicry.common.scrubbing import mask_token
from mimicry.common.text import first_few
from mimicry.study.images import ImageFolder, ImageRecord
from mimicry.tuning.adapters.folder import (
    BLOCKED,
    TRAIN_LOG,
    TRAINING_RUN,
    WEIGHTS,
    check_adapter,
    read_training_run,
    set_adapter_aside,
)

# With less than this on the disk, a training cannot even say that it failed.
_ROOM_BYTES = 1 << 16
# How lines of our programs begin in the log.
_ERROR = "error: "
_STOPPED_BY = "stopped by "


@dataclass(frozen=True)
class Attempt:
    """One attempt at training in `output_dir`: made before it begins, it tells its traces from older ones."""

    output_dir: Path
    log_offset: int
    began: float = field(default_factory=time.time)

    @classmethod
    def begin(cls, output_dir: Path) -> "Attempt":
        """Note what lies there, and make the folder.

        Raises:
            TrainingFailed: the folder cannot be made.
        """
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingFailed(f"{output_dir} cannot be made: {error.strerror}") from error
        log = output_dir / TRAIN_LOG
        return cls(output_dir, log.stat().st_size if log.exists() else 0)

    def failure(self, code: int) -> str | None:
        """Return why there is no complete adapter after this attempt; None when there is one."""
        mask_token(self.output_dir / TRAIN_LOG)
        run = self._own_run()
        if (self.output_dir / WEIGHTS).exists():
            try:
                check_adapter(self.output_dir, rank=None)
            except AdapterBroken as error:
                set_adapter_aside(self.output_dir, "broken")
                return str(error)
            return None
        if self._watchers_error():
            return self._watchers_error()
        if run.get("error"):
            return str(run["error"])
        if shutil.disk_usage(self.output_dir).free < _ROOM_BYTES:
            # Nobody could write down what went wrong.
            return disk_fault(OSError(errno.ENOSPC, "", str(self.output_dir)))
        if run.get("status") == "running":
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
        return self._own_run().get("status") == BLOCKED

    def stopped_by(self) -> int | None:
        """Return the number of the signal that stopped the trainer; None when it did not end that way.

        Its record says so; the log does of one that was stopped before it began a record.
        """
        run = self._own_run()
        words = "".join(self.log_lines(1))
        if run:
            words = str(run.get("error")) if run.get("status") == "interrupted" else ""
        if not words.startswith(_STOPPED_BY) or self._watchers_error():
            return None
        return signal.Signals.__members__.get(words.removeprefix(_STOPPED_BY))

    def steps(self) -> int:
        """Return the optimizer steps that the trainer says it took; 0 where it says nothing."""
        steps = self._own_run().get("steps")
        return steps if isinstance(steps, int) else 0

    def log_lines(self, count: int) -> list[str]:
        """Return the last lines that this attempt wrote to the log."""
        return last_lines(self.output_dir / TRAIN_LOG, count, self.log_offset)

    def _watchers_error(self) -> str:
        """Say why who watched the trainer has stopped it; it takes that for a signal like any other."""
        last = "".join(self.log_lines(1))
        interrupted = self._own_run().get("status") == "interrupted"
        return last.removeprefix(_ERROR) if interrupted and last.startswith(_ERROR) else ""

    def _own_run(self) -> dict[str, Any]:
        path = self.output_dir / TRAINING_RUN
        try:
            # File times are coarser than the clock.
            if path.stat().st_mtime < self.began - 1:
                return {}
            return read_training_run(self.output_dir) or {}
        except (OSError, AdapterBroken):
            return {}


def refuse_changed_images(images: ImageFolder, records: Sequence[ImageRecord]) -> None:
    """Make sure that the images are still those that a training began with.

    Raises:
        TrainingFailed: some were changed or removed, so that nobody knows what it was trained on.
    """
    changed = images.changed_since(records)
    if changed:
        raise TrainingFailed(
            f"images were changed while it was trained on them: {first_few(changed)}; nothing is "
            f"published, and the same command trains on what is there now"
        )
