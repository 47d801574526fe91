"""Running a click command as a program: our errors, its errors and stop signals become exit codes."""

import sys
from collections.abc import Sequence

import click

from mimicry.common.children import Interrupted, stop_signals_raise
from mimicry.common.errors import run_reporting_errors


def run_command(command: click.Command, words: Sequence[str] | None = None) -> int:
    """Run `command` on `words`, or on the command line, and return its exit code; no traceback."""
    try:
        with stop_signals_raise():
            return run_reporting_errors(lambda: _code(command.main(words, standalone_mode=False)))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted as stop:
        print(f"\nstopped by {stop}", file=sys.stderr)
        return stop.exit_code


def _code(result: object) -> int:
    return result if isinstance(result, int) else 0
