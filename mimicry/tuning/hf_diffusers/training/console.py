"""Lines for people."""

from contextlib import suppress

from mimicry.common.environment import process_index
from mimicry.common.text import printable


def say(text: str) -> None:
    """Print a line for people at once, in the main process; under the wrapper it goes to train.log."""
    # A full disk, or a reader that has closed the pipe, must not end a training.
    if process_index() == 0:
        with suppress(OSError):
            print(printable(text), flush=True)
