"""What a worker is asked to do in tests. It is imported in the worker's process."""

import os
import time


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error."""


def do(task: str) -> tuple[int, str | None]:
    """Return this process and a variable of its environment, if the task is not to do something else."""
    if task == "fail":
        raise ValueError("too bad\nthe second line")
    if task == "run out of memory":
        raise OutOfMemoryError("tried to allocate 20 GiB")
    if task == "end":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    return os.getpid(), os.environ.get("OF_THE_TASK")
