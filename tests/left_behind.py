"""Processes that outlive the test that started them: they are ended, and the test is told of them.

They are known by a variable of their environment. Others may know them too, as some programs wipe theirs.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

_VARIABLE = "MIMICRY_STARTED_BY_TEST"
_GRACE_SECONDS = 30.0
_KILL_SECONDS = 30.0


@contextmanager
def none_left_behind(grace_seconds: float = _GRACE_SECONDS) -> Iterator[None]:
    """End what the body has started and not ended, also when the body fails.

    Raises:
        AssertionError: there was something to end; the message names it.
    """
    value = uuid.uuid4().hex
    former = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = value
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if former is not None:
            os.environ[_VARIABLE] = former
        left = end_processes(lambda: with_variable(_VARIABLE, value), grace_seconds)
        assert not left, f"the test has left processes behind: {left}"


def with_variable(name: str, value: str) -> list[psutil.Process]:
    """Return the other living processes that have this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value and lives(process):
                found.append(process)
    return found


def lives(process: psutil.Process) -> bool:
    """Return whether a process still does something; a dead one may wait for its parent to ask."""
    with suppress(psutil.Error):
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def end_processes(find: Callable[[], Iterable[psutil.Process]], grace_seconds: float = 0.0) -> list[str]:
    """Kill the processes that `find` returns, until it returns none; return what they were.

    Args:
        grace_seconds: how long they may take to end by themselves.

    Raises:
        TimeoutError: some do not die, or others take their place.
    """
    begin = time.monotonic()
    ended: dict[int, str] = {}
    while processes := list(find()):
        waited = time.monotonic() - begin
        if waited > grace_seconds + _KILL_SECONDS:
            raise TimeoutError(f"these do not end: {[_described(process) for process in processes]}")
        for process in processes if waited >= grace_seconds else ():
            ended[process.pid] = _described(process)
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.1)
    return list(ended.values())


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)
