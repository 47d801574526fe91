"""How a training ended, told from what it left: the exit code alone says little.

The launcher turns every exit code of the trainer into 1.
"""

import errno
import shutil
import signal
import time
from dataclasses import dataclass, field

from mimicry.common.errors import AdapterBroken, TrainingFailed, disk_fault
from mimicry.common.processes import last_lines
from mimicry.common.tokens import mask_token
from mimicry.study import State
from mimicry.tuning.adapters import AdapterFolder, TrainingRun

# With less than this on the disk, a training cannot even say that it failed.
_ROOM_BYTES = 1 << 16
# How lines of our programs begin in the log.
_ERROR = "error: "
_STOPPED_BY = "stopped by "


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
