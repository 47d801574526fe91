"""What a Slurm job does on its node: one call of apply_tuning for one cell. Submitit runs it.

Slurm sends its signals to all processes of a job. SIGUSR2, before the time limit or a preemption, is for us
alone: the training is asked to stop with a checkpoint, and submitit puts the job back into the queue.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mimicry.common.claims import SILENT_SECONDS, claimed_by
from mimicry.common.processes import NOT_AS_ASKED, Child, running_child
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.planning.overwriting import training_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# The orchestrator gives the training twenty seconds, of which the wrapper takes fifteen.
_GRACE_SECONDS = 100.0
# After a signal that ended the training, Slurm's own end of the job, or SIGUSR2, comes within this time.
END_SECONDS = 60.0
_POLL_SECONDS = 0.2
CLAIM_POLL_SECONDS = 5.0
# So many allocations in a row that took no step: the next ones would take none either.
_MOST_IDLE = 5
# A program that is started this way ignores SIGUSR2 until it says what to do with it, and so do its children.
IGNORING = ("/bin/sh", "-c", 'trap "" USR2; exec "$0" "$@"')


class SlurmTask:
    """The training of one cell, by the words of its command."""

    def __init__(
        self, words: Sequence[str], folder: Path, replaces: Sequence[str] | None = None, idle: int = 0
    ) -> None:
        """See `mimicry.tuning.execution.slurm`.

        Args:
            words: the command.
            folder: that of the adapter.
            replaces: the training whose adapter is to be replaced, as `training_of` tells it; None for none.
            idle: how many allocations in a row have taken no step.
        """
        self.words = list(words)
        self.folder = folder
        self.replaces = None if replaces is None else list(replaces)
        self.idle = idle
        self._child: Child | None = None
        self._first_checkpoint = ""

    def __call__(self) -> int:
        """Train, and return 0; any other end is the exit code of this process."""
        deadline = time.monotonic() + 2 * SILENT_SECONDS
        while True:
            code = self._run()
            # The claim of a node that died lasts for some minutes.
            holder = claimed_by(self.folder)
            if code != NOT_AS_ASKED or not holder or time.monotonic() > deadline:
                break
            print(f"waiting: {holder}", flush=True)
            while claimed_by(self.folder) and time.monotonic() < deadline:
                time.sleep(CLAIM_POLL_SECONDS)
        if code < 0 or code > 128:
            print(f"the training was ended by a signal, exit code {code}", flush=True)
            _sleep(END_SECONDS)
        if code != 0:
            sys.exit(code if code > 0 else 128 - code)
        return code

    def checkpoint(self) -> "DelayedSubmission | None":
        """Stop the training with a checkpoint; return what the next allocation is to do, None to give up."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.stop(signal.SIGTERM, _GRACE_SECONDS)
        idle = self.idle + 1 if self._newest_checkpoint() == self._first_checkpoint else 0
        if idle >= _MOST_IDLE:
            print(
                f"error: the last {idle} allocations took no step; --slurm-time may be too short for this "
                f"training",
                flush=True,
            )
            return None
        return DelayedSubmission(SlurmTask(self.words, self.folder, self.replaces, idle))

    def _run(self) -> int:
        words = [*IGNORING, *self.words]
        if self.replaces is not None and training_of(AdapterFolder(self.folder)) == self.replaces:
            words.append("--overwrite")
        self._first_checkpoint = self._newest_checkpoint()
        with running_child(words, output=None, environment=os.environ, grace_seconds=_GRACE_SECONDS) as child:
            self._child = child
            while True:
                # The signal's handler looks at the child too, which it could not do in the midst of this.
                with _user_signal_held():
                    code = child.wait(0.0)
                if code is not None:
                    self._child = None
                    return code
                time.sleep(_POLL_SECONDS)

    def _newest_checkpoint(self) -> str:
        return next(iter(AdapterFolder(self.folder).checkpoint_names()), "")


@contextmanager
def _user_signal_held() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


def _sleep(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
