"""The errors that mimicry raises on purpose, and their exit codes: 2 where nothing was begun, else 1.

A problem is one string that names the value, what is allowed, and what to type next. Only the programs turn
these errors into messages and exit codes (`report`).
"""

import errno
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches

from mimicry.common.text import message_lines
from mimicry.common.tokens import scrub


class MimicryError(Exception):
    """Base of all errors raised on purpose; `problems` holds one message for each thing that is wrong."""

    exit_code = 1

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class UsageError(MimicryError):
    """The command line or a configuration file is wrong."""

    exit_code = 2


class BatchFault(MimicryError):
    """A fault of the whole batch, found before anything was trained."""

    exit_code = 2


class AdapterBroken(MimicryError):
    """The files of an adapter are damaged or incomplete."""


class TrainingFailed(MimicryError):
    """The training of one artist ended without a complete adapter."""


class ClaimedElsewhere(MimicryError):
    """Another process works in the folder: see `mimicry.common.claims`."""


class ClaimLost(MimicryError):
    """Another process has taken over the folder that this process worked in."""


class UploadFailed(MimicryError):
    """A complete adapter did not reach the Hub."""


class Problems:
    """Collects the problems of several checks: put `with problems:` around each, then call `raise_any`."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, UsageError):
            return False
        self._found += error.problems
        return True

    def raise_any(self) -> None:
        if self._found:
            raise UsageError(*self._found)


def report(error: MimicryError) -> int:
    """Print every problem of `error` to standard error and return the exit code that goes with it."""
    # Standard error may be a log on the very disk that is full.
    with suppress(OSError):
        for problem in error.problems:
            print(f"error: {message_lines(scrub(problem))}", file=sys.stderr, flush=True)
    return error.exit_code


def disk_fault(error: BaseException) -> str:
    """Return what to do when `error` means that the disk cannot be written; empty for any other error."""
    known = {errno.ENOSPC: "is full", errno.EDQUOT: "has no room left for you", errno.EROFS: "is read-only"}
    for number, state in known.items():
        if getattr(error, "errno", None) == number or f"os error {number})" in str(error):
            where = getattr(error, "filename", None)
            return (
                f"the disk {f'of {where} ' if where else ''}{state}; see `df -h`, make room, and type the "
                f"same command again: it goes on where it stopped"
            )
    return ""


def run_reporting_errors(program: Callable[[], int]) -> int:
    """Run `program`; an error raised on purpose becomes messages and an exit code, without a traceback."""
    try:
        return program()
    except MimicryError as error:
        return report(error)
    except OSError as error:
        fault = disk_fault(error)
        if not fault:
            raise
        return report(MimicryError(fault))


def nearest(name: str, known: Sequence[str], count: int = 3) -> str:
    """Return a hint for a misspelt `name`: the nearest of the `known` names, or a list of them."""
    folded = {other.casefold(): other for other in known}
    asked = name.casefold()
    matches = [folded[other] for other in get_close_matches(asked, folded, n=count, cutoff=0.5)]
    # People also type a part of a name, which is not a close match: monet for Claude_Monet.
    matches += [other for key, other in folded.items() if asked and asked in key and other not in matches]
    if matches:
        return "did you mean " + " or ".join(repr(match) for match in matches[:count]) + "?"
    listed = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
    return f"available: {listed}" if known else "none is available"
