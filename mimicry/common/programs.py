"""Running a click command as a program: our errors, its errors and stop signals become exit codes."""

import atexit
import gc
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from mimicry.common.environment import load_environment
from mimicry.common.errors import run_reporting_errors
from mimicry.common.processes import Interrupted, stop_signals_raise
from mimicry.common.tokens import scrubbed_output

# The exit code when nothing failed, but some adapters are stale, or are left to another call.
NOT_AS_ASKED = 3


def quicken_exit() -> None:
    """Skip the last garbage collection of this process, which takes a second with torch and diffusers."""
    atexit.register(gc.freeze)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries in the body: a fifth faster without garbage collection.

    What they have made is left out of later collections too, each of which would go through all of it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_command(command: click.Command, words: Sequence[str] | None = None) -> int:
    """Run `command` on `words`, or on the command line, and return its exit code, without a traceback.

    Variables of a `.env` are set first. Names that the terminal cannot show are escaped, and the Hub token is
    not printed.
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
