"""Child processes for tests: scripts that write files to say how far they are."""

import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_SECONDS = 20.0
# Written under another name first, so that an existing file is complete.
TELL = """
import os, signal, sys, time
def tell(name, text=""):
    with open(name + ".tmp", "w") as file:
        file.write(str(text))
    os.rename(name + ".tmp", name)
"""


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def told(path: Path) -> str:
    wait_until(path.exists)
    return path.read_text()


def python(folder: Path, code: str) -> list[str]:
    script = folder / f"script{len(list(folder.glob('script*')))}.py"
    script.write_text(TELL + textwrap.dedent(code))
    return [sys.executable, "-S", str(script)]


def is_running(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
