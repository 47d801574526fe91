"""Child processes that can be stopped whole, and that notice when their parent is gone.

A child is a session of its own, so that a signal reaches all of its processes and a Ctrl-C in the terminal
reaches only us. Its standard input is a pipe that we hold and never write to: end of file tells the child
that we are gone, however we went. Standard input is what reaches the trainer through the launcher. For
children that do not heed it, or hang, a small shell holds the end of another such pipe, and ends them.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

# Set in the environment of a child whose standard input is such a pipe: a program started by hand has a
# terminal or /dev/null there, and end of file means nothing.
PARENT_PIPE = "MIMICRY_PARENT_PIPE"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How deep we are in bodies that must not be interrupted, and the signals that came meanwhile. Signals reach
# the main thread alone.
_holds: list[None] = []
_held: list[int] = []
_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0
# One wish to stop often comes as several signals: from the system to every process, and from each parent.
_AGAIN_SECONDS = 0.5
# How long a child that is asked to hurry has for killing its own children, which have less in their turn.
_HURRY_SECONDS = 2.0
_HURRY_SECONDS_BELOW = 0.3
# Waits for our end, then stops the group $0: it has $1 seconds for putting its things in order.
_GUARD = """\
read -r _
kill -s TERM -- "-$0"
while [ "$1" -gt 0 ] && kill -s 0 -- "-$0"; do sleep 1; set -- $(($1 - 1)); done
kill -s KILL -- "-$0"
"""
_ORPHAN_SECONDS = 25


class Interrupted(BaseException):
    """A stop signal arrived. `exit_code` is what a shell reports for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Interrupted`; what was ignored at the start stays so.

    Later ones change nothing, but for a second Ctrl-C: the user does not want to wait. It raises again, or
    kills this process where it would have to be held. SIGUSR1, which asks a trainer for a checkpoint and may
    be sent to all processes of a job, ends nobody.
    """
    first: list[float] = []

    def raise_interrupted(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if first and (number != signal.SIGINT or now - first[0] < _AGAIN_SECONDS):
            return
        if _holds and first:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        first.append(now)
        if not _holds:
            raise Interrupted(number)
        _held.append(number)

    previous = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGUSR1)}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for number in STOP_SIGNALS:
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, raise_interrupted)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _held.clear()


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Put `Interrupted` off until the body is over: for what must be done whole or not at all."""
    _holds.append(None)
    try:
        yield
    finally:
        _holds.pop()
    if _held and not _holds:
        number = _held[0]
        _held.clear()
        raise Interrupted(number)


def held_signal() -> int | None:
    """Return the stop signal that came first of those that are held back; None when none came."""
    return _held[0] if _held else None


def drop_held_signals() -> None:
    """Forget the stop signals that are held back: they are being followed already."""
    _held.clear()


@contextmanager
def signal_noted(number: int) -> Iterator[Callable[[], bool]]:
    """Take note of a signal that asks for something; yield what tells whether it came since the last look."""
    arrived: list[int] = []

    def told() -> bool:
        came = bool(arrived)
        arrived.clear()
        return came

    previous = signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield told
    finally:
        signal.signal(number, previous)


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
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self._process.pid), str(_ORPHAN_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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

        A child that has ended may have left others of its group behind: they have the same grace.

        Raises:
            Interrupted: a stop signal came meanwhile; nothing of the child is left all the same.
        """
        self._signal_group(number)
        try:
            # The launcher dies of the signal at once, while the trainer puts its records in order.
            self._wait_for_group(grace_seconds)
        except Interrupted as hurry:
            self._signal_group(hurry.number)
            with contextlib.suppress(Interrupted):
                self._wait_for_group(_HURRY_SECONDS_BELOW if has_parent() else _HURRY_SECONDS)
            raise
        finally:
            self._end()

    def _end(self) -> None:
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        # What comes next may need the memory that a killed process still holds for a moment.
        self._wait_for_group(_KILL_SECONDS)
        self._guard.kill()
        self._guard.wait()
        for process in (self._process, self._guard):
            if process.stdin is not None:
                process.stdin.close()

    def _signal_group(self, number: int) -> bool:
        """Send the signal to all members; False when there is none. The group outlives its leader."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _wait_for_group(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while (self._process.poll() is None or self._group_lives()) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _group_lives(self) -> bool:
        """Return whether a member of the group still runs."""
        if not self._signal_group(0):
            return False
        try:
            states = _member_states(self._process.pid)
        except FileNotFoundError:  # no /proc: not Linux
            return True
        # In a container whose first process buries nobody, an orphan stays a zombie for ever.
        return any(state not in "ZX" for state in states)


def _member_states(group: int) -> list[str]:
    """Return the states, as in ps, of the processes of a group."""
    states = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - numbers, no paths
        # A process may end while we look at it.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if name.isdecimal():
                # The name of the program stands in brackets and may hold anything.
                fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[2]) == group:
                    states.append(fields[0].decode())
    return states


@contextmanager
def running_child(
    words: list[str], *, output: IO[bytes] | None, environment: Mapping[str, str], grace_seconds: float
) -> Iterator[Child]:
    """Start a `Child` and yield it; however the body ends, nothing of the child is left.

    A stop signal that ends the body is passed on to the child first.
    """
    child: Child | None = None
    number = int(signal.SIGTERM)
    try:
        with stop_signals_held():
            child = Child(words, output=output, environment=environment)
        yield child
    except Interrupted as stop:
        number = stop.number
        raise
    finally:
        if child is not None:
            child.stop(number, grace_seconds)


def has_parent() -> bool:
    """Return whether another program of ours started this process as a `Child`."""
    return PARENT_PIPE in os.environ


def watch_parent(when_gone: Callable[[], None]) -> None:
    """Call `when_gone` in a thread once the parent that started us as a `Child` is gone.

    Does nothing in a process that was not started that way.
    """
    if not has_parent():
        return

    def watch() -> None:
        # os.read and not sys.stdin: its buffer would hold the interpreter's exit up.
        while os.read(0, 1024):
            pass
        when_gone()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def stop_with_parent(kill_after_seconds: float | None = None) -> None:
    """Treat the loss of the parent as a SIGTERM to this process.

    Args:
        kill_after_seconds: after so long, end it in any case: a process that waits for another one within a
            library does not see its signals.
    """

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            os.kill(os.getpid(), signal.SIGKILL)

    watch_parent(stop)


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
