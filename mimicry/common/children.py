"""Child processes that can be stopped whole, and that notice when their parent is gone.

A child is a session of its own, so that a signal reaches all of its processes and a Ctrl-C in the terminal
reaches only us. Its standard input is a pipe that we hold and never write to: end of file tells the child
that we are gone, however we went. Standard input is what reaches the trainer through the launcher.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

# Set in the environment of a child whose standard input is such a pipe: a program started by hand has a
# terminal or /dev/null there, and end of file means nothing.
PARENT_PIPE = "MIMICRY_PARENT_PIPE"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A stop signal arrived. `exit_code` is what a shell reports for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Interrupted`; one that was ignored at the start stays ignored."""

    def raise_interrupted(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    taken = [number for number, handler in previous.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, raise_interrupted)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])


class Child:
    """A running child process together with everything that it starts."""

    def __init__(self, words: list[str], *, output: IO[bytes] | None, environment: Mapping[str, str]) -> None:
        """Start `words`; standard output and error go to `output`, or to ours when it is None."""
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env={**environment, PARENT_PIPE: "1"},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for the end of the child; return its exit code, or None when it still runs."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, number: int, grace_seconds: float) -> None:
        """Send the signal to the child's whole group, and SIGKILL to what still lives after the grace.

        A child that has ended may have left others of its group behind; they are killed all the same.
        """
        self._signal_group(number)
        # A second stop signal means that the user does not want to wait.
        with contextlib.suppress(Interrupted):
            self.wait(grace_seconds)
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _signal_group(self, number: int) -> None:
        # The group outlives its leader as long as one of its members lives.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextmanager
def running_child(
    words: list[str], *, output: IO[bytes] | None, environment: Mapping[str, str], grace_seconds: float
) -> Iterator[Child]:
    """Start a `Child` and yield it; however the body ends, nothing of the child is left.

    A stop signal that ends the body is passed on to the child first.
    """
    child = Child(words, output=output, environment=environment)
    number = int(signal.SIGTERM)
    try:
        yield child
    except Interrupted as stop:
        number = stop.number
        raise
    finally:
        child.stop(number, grace_seconds)


def watch_parent(when_gone: Callable[[], None]) -> None:
    """Call `when_gone` in a thread once the parent that started us as a `Child` is gone.

    Does nothing in a process that was not started that way.
    """
    if PARENT_PIPE not in os.environ:
        return

    def watch() -> None:
        # os.read and not sys.stdin: its buffer would hold the interpreter's exit up.
        while os.read(0, 1024):
            pass
        when_gone()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def stop_with_parent() -> None:
    """Treat the loss of the parent as a SIGTERM to this process."""
    watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))


def last_lines(path: Path, count: int, offset: int = 0) -> list[str]:
    """Return the last `count` lines that a log has after `offset` bytes; blank lines do not count."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(offset, file.tell() - 65536))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
