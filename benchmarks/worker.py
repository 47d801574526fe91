"""A process that does one task after another, so that none of them can harm the program that measures.

A GPU that has met an illegal access is lost for its process, and memory that ran out may stay in use. So the
process ends after a task that failed, and the next task gets a new one.
"""

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

# How the message of a task begins that ran out of memory.
OUT_OF_MEMORY = "out of memory"
# Handles of libraries stay; more than that is a leftover of the task.
_MOST_LEFT_BYTES = 256 << 20
_SECONDS_TO_END = 5


class TaskFailed(Exception):
    """A task has no result; the message says why, in one line."""


class Worker:
    """Runs `do`, a function of a module, on tasks in another process. Tasks and results must be picklable."""

    def __init__(self, do: Callable[[Any], Any]) -> None:
        self._do = do
        self._process: Any = None
        self._connection: Any = None
        self._is_busy = False

    def run(
        self, task: Any, seconds: float, *, fresh: bool = False, environment: Mapping[str, str] | None = None
    ) -> Any:
        """Return the result of a task that may take so many seconds.

        Args:
            fresh: in a process that has done nothing yet.
            environment: variables of a process for this task alone.

        Raises:
            TaskFailed: it raised an exception, ended its process, or took too long.
        """
        if seconds < 1:
            raise TaskFailed("no time was left")
        if fresh or environment:
            self.close()
        if self._process is None:
            self._start(environment or {})
        self._connection.send(task)
        self._is_busy = True
        try:
            if not self._connection.poll(seconds):
                self.close()
                raise TaskFailed(f"it took more than {seconds:.0f} s")
            result, problem, goes_on = self._connection.recv()
            self._is_busy = False
        except (EOFError, OSError) as error:
            self._process.join(10)
            code = self._process.exitcode
            self.close()
            raise TaskFailed(f"its process ended with code {code}") from error
        if environment or not goes_on:
            self.close()
        if problem:
            raise TaskFailed(problem)
        return result

    def close(self) -> None:
        """End the process; the next task starts another one."""
        if self._process is None:
            return
        # One that waits for a task ends by itself.
        self._connection.close()
        self._process.join(0 if self._is_busy else _SECONDS_TO_END)
        self._process.kill()
        self._process.join()
        self._process = None

    def _start(self, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._do, dict(environment)), daemon=True)
        self._process.start()
        other.close()


def _serve(connection: Connection, do: Callable[[Any], Any], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    goes_on = True
    while goes_on:
        try:
            task = connection.recv()
        except EOFError:
            return
        result, problem = None, ""
        try:
            result = do(task)
        except Exception as error:
            problem = _in_one_line(error)
            goes_on = False
        goes_on = goes_on and _is_clean()
        connection.send((result, problem, goes_on))
    connection.close()


def _in_one_line(error: Exception) -> str:
    """Return what went wrong; print where, unless memory ran out, which may be what is measured."""
    first = (str(error).splitlines() or [""])[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"{OUT_OF_MEMORY}: {first}"
    traceback.print_exc()
    return f"{type(error).__name__}: {first}"


def _is_clean() -> bool:
    """Free what the task left; return whether the next one finds the GPU empty."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return True
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if not torch.cuda.is_initialized():
        return True
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated()) <= _MOST_LEFT_BYTES


class Deadline:
    """The end of the time that a program has."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, 0 at least."""
        return max(0.0, self._end - time.monotonic())
