"""Child processes that end with everything they started, and notice when their parent is gone.

A child runs in a session of its own: a signal reaches all of its processes, a Ctrl-C only us. End of file on
its standard input, which the launcher passes on to the trainer, tells it that we are gone. A small shell
waits on a second pipe of this kind, and ends children that ignore end of file or hang. Besides, what every
program of ours is run by: errors and stop signals become exit codes.
"""

import atexit
import contextlib
import gc
import importlib
import io
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import click

from mimicry.common.environment import load_environment
from mimicry.common.errors import run_reporting_errors
from mimicry.common.tokens import scrubbed_output

# Set in the environment of a child whose standard input is such a pipe. A program started by hand has a
# terminal or /dev/null there, where end of file means nothing.
PARENT_PIPE = "MIMICRY_PARENT_PIPE"

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How many nested bodies must not be interrupted, and the signals that came meanwhile. Python runs signal
# handlers in the main thread only.
_holds: list[None] = []
_held: list[int] = []
_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0
# One request to stop often arrives as several signals: the system tells every process, and so does each
# parent.
_AGAIN_SECONDS = 0.5
# How long a child that is told to hurry has for killing its own children, and how long these have.
_HURRY_SECONDS = 2.0
_HURRY_SECONDS_BELOW = 0.3
# Waits for our end, then stops the process group $0, which has $1 seconds to clean up.
_GUARD = """\
read -r _
kill -s TERM -- "-$0"
while [ "$1" -gt 0 ] && kill -s 0 -- "-$0"; do sleep 1; set -- $(($1 - 1)); done
kill -s KILL -- "-$0"
"""
_ORPHAN_SECONDS = 25
# How much of a child's standard error is kept.
_DIAGNOSTIC_BYTES = 4000


class Interrupted(BaseException):
    """A stop signal arrived. `exit_code` is what a shell reports for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Interrupted`; a signal that was ignored stays ignored.

    Later ones change nothing, except a second Ctrl-C: it raises again, or kills this process where it would
    have to be held back. SIGUSR1, which asks a trainer for a checkpoint, is ignored here.
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
    """Hold `Interrupted` back until the body is over: for what must be done completely or not at all."""
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
    return _held[0] if _held else None


def drop_held_signals() -> None:
    _held.clear()


@contextmanager
def signal_noted(number: int) -> Iterator[Callable[[], bool]]:
    """Note that a signal arrived; yield a function that says whether it did since the last call."""
    arrived: list[int] = []

    def has_come() -> bool:
        came = bool(arrived)
        arrived.clear()
        return came

    previous = signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield has_come
    finally:
        signal.signal(number, previous)


class Child:
    def __init__(
        self, words: list[str], *, output: IO[bytes] | int | None, environment: Mapping[str, str]
    ) -> None:
        """Start `words`; standard output and error go to `output`, or to ours when it is None.

        With subprocess.PIPE they go to pipes of their own, and the child can be sent a request: see `ask`.
        """
        # Loaded now: when the child is being stopped, a second signal could interrupt the import.
        importlib.import_module("psutil")
        errors = output if output in (None, subprocess.PIPE) else subprocess.STDOUT
        self.diagnostics = b""
        # By when a child that was asked to stop has to have ended.
        self._stopped_by: float | None = None
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env={**environment, PARENT_PIPE: "1"},
            start_new_session=True,
            bufsize=0,
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
        """Return the exit code of the child, or None when it still runs after `timeout_seconds`."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def ask(self, request: bytes, silence_seconds: float) -> Iterator[bytes]:
        """Send one line to the child, and yield the lines that it answers with until it closes that.

        Its standard error, whose end `diagnostics` holds, is a sign of life too; TimeoutError after
        `silence_seconds`.
        """
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        assert pipes.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            pipes.stdin.write(request + b"\n")
        unfinished = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipes.stdout, selectors.EVENT_READ)
            selector.register(pipes.stderr, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(silence_seconds)
                if not ready:
                    raise TimeoutError
                for key, _ in ready:
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is pipes.stderr:
                        self.diagnostics = (self.diagnostics + chunk)[-_DIAGNOSTIC_BYTES:]
                    else:
                        *lines, unfinished = (unfinished + chunk).split(b"\n")
                        yield from lines
        # Its pipes are closed a moment before it has an exit code.
        self.wait(_KILL_SECONDS)

    def ask_to_stop(self, number: int, grace_seconds: float) -> None:
        """Send the signal to the child's whole group, and return; asked again, the child has to hurry."""
        now = time.monotonic()
        if self._stopped_by is None:
            self._stopped_by = now + grace_seconds
        else:
            hurry = _HURRY_SECONDS_BELOW if has_parent() else _HURRY_SECONDS
            self._stopped_by = min(self._stopped_by, now + hurry)
        self._signal_group(number)

    def has_stopped(self) -> bool:
        """Return whether `stop` need not wait: nothing of the child is left, or its time is over."""
        over = self._stopped_by is not None and time.monotonic() >= self._stopped_by
        return over or (self._process.poll() is not None and not self._group_lives())

    def stop(self, number: int, grace_seconds: float) -> None:
        """Send the signal to the child's whole group, and SIGKILL to what still runs after `grace_seconds`.

        A child that was asked to stop has the time that it was given then, as have processes that it left
        behind.
        """
        try:
            if grace_seconds > 0:
                if self._stopped_by is None:
                    self.ask_to_stop(number, grace_seconds)
                # The launcher dies of the signal at once, while the trainer writes its records.
                self._wait_until_stopped()
        except Interrupted as hurry:
            self.ask_to_stop(hurry.number, grace_seconds)
            with contextlib.suppress(Interrupted):
                self._wait_until_stopped()
            raise
        finally:
            self._end()

    def _end(self) -> None:
        self._signal_group(signal.SIGKILL)
        self._process.wait()
        # The caller may need the memory that a killed process still holds for a moment.
        self._stopped_by = time.monotonic() + _KILL_SECONDS
        self._wait_until_stopped()
        self._guard.kill()
        self._guard.wait()
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr, self._guard.stdin)
        for pipe in pipes:
            if pipe is not None:
                pipe.close()

    def _signal_group(self, number: int) -> bool:
        """Send the signal to all members; False when there are none. A group can outlive its leader."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _wait_until_stopped(self) -> None:
        while not self.has_stopped():
            time.sleep(_POLL_SECONDS)

    def _group_lives(self) -> bool:
        # In a container whose first process does not reap orphans, these stay zombies for ever.
        return self._signal_group(0) and any(map(process_start, _members(self._process.pid)))


def _members(group: int) -> list[int]:
    import psutil

    members = []
    for pid in psutil.pids():
        # A process may end while we look at it.
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == group:
                members.append(pid)
    return members


def process_start(pid: int) -> str | None:
    """Return when a process started, in seconds since the boot; None when it has ended, as a zombie has.

    The time since the boot, unlike the time of day, stays the same when the clock is set.
    """
    import psutil  # imported late, because `--help` does not need it

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return f"{process.create_time() - psutil.boot_time():.2f}"
    except psutil.NoSuchProcess:
        return None


@contextmanager
def running_child(
    words: list[str], *, output: IO[bytes] | int | None, environment: Mapping[str, str], grace_seconds: float
) -> Iterator[Child]:
    """Start a `Child` and yield it; however the body ends, nothing of the child is left.

    A stop signal that ends the body is passed on to the child, which has `grace_seconds` to clean up.
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
    return PARENT_PIPE in os.environ


def watch_parent(when_gone: Callable[[], None]) -> None:
    """Call `when_gone` in a thread once the parent that started us as a `Child`, if one did, is gone."""
    if not has_parent():
        return

    def watch() -> None:
        # os.read and not sys.stdin, whose buffer would delay the interpreter's exit.
        while os.read(0, 1024):
            pass
        when_gone()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def stop_with_parent(kill_after_seconds: float | None = None) -> None:
    """Send this process a SIGTERM when its parent is gone, and SIGKILL after `kill_after_seconds`."""

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            os.kill(os.getpid(), signal.SIGKILL)

    watch_parent(stop)


def last_lines(path: Path, count: int, offset: int = 0) -> list[str]:
    """Return the last `count` lines of a log after its first `offset` bytes; blank lines do not count."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(offset, file.tell() - 65536))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


# The exit code when nothing failed, but some adapters are stale, or are left to another call.
NOT_AS_ASKED = 3


def quicken_exit() -> None:
    """Skip the last garbage collection of this process, which takes a second with torch and diffusers."""
    atexit.register(gc.freeze)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries in the body: a fifth faster without garbage collection, then or later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_command(command: click.Command, words: Sequence[str] | None = None) -> int:
    """Run `command` on `words`, or on the command line, and return its exit code, without a traceback.

    Variables of a `.env` are set first. What the terminal cannot show is escaped, the Hub token not printed.
    """
    quicken_exit()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with stop_signals_raise(), scrubbed_output():
            return run_reporting_errors(lambda: _run(command, words))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted as stop:
        print(f"\nstopped by {stop}", file=sys.stderr)
        return stop.exit_code


def _run(command: click.Command, words: Sequence[str] | None) -> int:
    load_environment()
    result = command.main(words, standalone_mode=False)
    return result if isinstance(result, int) else 0
