"""`mimicry status`: how far the study is, and what to type next."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from mimicry.common.errors import UsageError
from mimicry.common.processes import Interrupted
from mimicry.common.text import printable
from mimicry.tuning.options.click_options import (
    CALL,
    TypedCommand,
    condition_filters,
    option,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.options.study_defaults import study_file_of
from mimicry.tuning.options.study_file import StudyFile
from mimicry.tuning.status.next_command import next_command
from mimicry.tuning.status.status_text import status_json, status_text
from mimicry.tuning.status.study_status import StudyStatus, read_status

_WATCH_SECONDS = 10.0
# A line of a file, where there is no terminal.
_PLAIN_WIDTH = 120
_CLEAR_SCREEN = "\x1b[2J\x1b[H"


@program("status")
@tree_options
@condition_filters
@selection_options
@option("--by-artist", topic=CALL, is_flag=True, help="A column for each artist, and not for each style.")
@option("-v", "--verbose", topic=CALL, is_flag=True, help="Show the lists whole.")
@option("--json", "as_json", topic=CALL, is_flag=True, help="The state of each cell as JSON.")
@option(
    "--watch",
    topic=CALL,
    is_flag=False,
    flag_value=_WATCH_SECONDS,
    type=click.FloatRange(min=0, min_open=True),
    metavar="[SECONDS]",
    help=f"Show it again and again, every {_WATCH_SECONDS:g} seconds if no number is given; Ctrl-C ends it.",
)
@click.pass_context
def status(context: click.Context, /, **parameters: Any) -> int:
    """Show how far the study is, and what to type next.

    A cell of the study is an adapter that it is to have: of one condition and artist, and of the usual recipe
    or a variant. All cells are meant that have images, adapters or an entry in the tracker, unless filters
    or the study's file name some. Headers, names and sizes are read; `mimicry verify` reads everything.
    Nothing is written.

    The exit code is 0 when all cells that have images are complete, 1 when some are broken, failed or
    blocked, and 3 otherwise: some are waiting, running, interrupted or stale.
    """
    if parameters["as_json"] and parameters["watch"] is not None:
        raise UsageError("--json is for programs and is printed once; leave --watch or --json out")
    typed = TypedCommand.from_context(context)

    study_file = study_file_of(context)

    def look() -> tuple[str, int]:
        found = read_status(parameters, study_file)
        if parameters["as_json"]:
            return json.dumps(status_json(found), indent=2), found.exit_code
        return _text(found, parameters, typed, study_file), found.exit_code

    if parameters["watch"] is not None:
        return _watch(look, parameters["watch"])
    text, code = look()
    print(text)
    return code


def _text(found: StudyStatus, parameters: dict[str, Any], typed: TypedCommand, study_file: StudyFile) -> str:
    text = status_text(
        found,
        by_artist=parameters["by_artist"],
        verbose=parameters["verbose"],
        width=shutil.get_terminal_size((_PLAIN_WIDTH, 0)).columns,
        now=datetime.now().astimezone(),
    )
    written = "" if study_file.path is None else f", as {study_file.path} says"
    head = printable(f"study: {found.tree.data_root}{written}")
    return f"{head}\n\n{text}\n\nnext: {next_command(found, typed, study_file)}"


def _watch(look: Callable[[], tuple[str, int]], seconds: float) -> int:
    begin = _CLEAR_SCREEN if sys.stdout.isatty() else ""
    try:
        while True:
            text, _ = look()
            updated = f"updated at {datetime.now():%H:%M:%S}, again in {seconds:g} s; Ctrl-C ends it"
            print(f"{begin}{text}\n{updated}", flush=True)
            time.sleep(seconds)
    except Interrupted as stop:
        return stop.exit_code
