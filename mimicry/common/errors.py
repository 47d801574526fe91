"""The errors that mimicry raises on purpose.

MimicryError            exit 1   base class; carries every problem found, not only the first
├── UsageError          exit 2   the words typed are wrong: an option, a name, a runner_config.json
├── BatchFault          exit 2   nothing can be trained: token, base model, disk, device
├── AdapterBroken       exit 1   files that claim to be an adapter and are none
├── TrainingFailed      exit 1   one artist's training ended without an adapter
├── ClaimedElsewhere    exit 1   another process works in the folder
├── ClaimLost           exit 1   another process has taken the folder over
└── UploadFailed        exit 1   the adapter is complete, its copy on the Hub is not

A problem is one string that names the value, what is allowed, and what to type next. Only the programs
turn these into messages and exit codes (`report`).
"""

import errno
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches

from mimicry.common.scrubbing import scrub
from mimicry.common.text import message_lines


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
    """The files of an adapter do not hold what they promise."""


class TrainingFailed(MimicryError):
    """The training of one artist ended without a complete adapter."""


class ClaimedElsewhere(MimicryError):
    """Another process works in the folder: see `mimicry.common.claims`."""


class ClaimLost(MimicryError):
    """The folder that this process worked in is no longer its own."""


class UploadFailed(MimicryError):
    """A complete adapter did not reach the Hub."""


class Problems:
    """Collects the problems of several checks, so that they are raised together.

    Used as a context manager around each check, which it lets fail; then `raise_any`.
    """

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
        """Raise a UsageError with all problems, if there were any."""
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
    """Say what to do when `error` means that the disk takes no more; empty for any other error.

    Libraries that are not written in Python raise errors of their own, whose text has the number.
    """
    known = {errno.ENOSPC: "is full", errno.EDQUOT: "has no room left for you", errno.EROFS: "is read-only"}
    for number, state in known.items():
        if getattr(error, "errno", None) == number or f"os error {number})" in str(error):
            where = getattr(error, "filename", None)
            return (
                f"the disk {f'of {where} ' if where else ''}{state}; see `df -h`, make room, and type the "
                f"same command again: it takes up where it stopped"
            )
    return ""


def run_reporting_errors(program: Callable[[], int]) -> int:
    """Run `program`; an error raised on purpose becomes its messages and its exit code, no traceback."""
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
    """Return a phrase that helps a misspelt `name` along: the nearest `known` names, or all of them."""
    folded = {other.casefold(): other for other in known}
    asked = name.casefold()
    matches = [folded[other] for other in get_close_matches(asked, folded, n=count, cutoff=0.5)]
    # A part of a name is no close match, yet what people type: monet for Claude_Monet.
    matches += [other for key, other in folded.items() if asked and asked in key and other not in matches]
    if matches:
        return "did you mean " + " or ".join(repr(match) for match in matches[:count]) + "?"
    listed = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
    return f"there is: {listed}" if known else "there is none"
