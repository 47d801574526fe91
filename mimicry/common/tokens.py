"""Keeping the Hub token out of everything that is printed or written."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, cast

# The variables from which huggingface_hub reads a token.
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TOKEN_PATTERN = re.compile(r"hf_[A-Za-z0-9]{16,}")
_MASK = "hf_***"


def without_token(text: str) -> str:
    """Return `text` with the token of this process's environment replaced by hf_***."""
    for token in _tokens():
        text = text.replace(token, _MASK)
    return text


def scrub(text: str) -> str:
    """Return `text` with the token, and anything that looks like one, replaced by hf_***."""
    return _TOKEN_PATTERN.sub(_MASK, without_token(text))


def mask_token(log: Path) -> None:
    """Overwrite the token with stars, in place, in a log that other processes may be appending to."""
    secrets = [token.encode() for token in _tokens()]
    try:
        content = log.read_bytes()
        if not any(secret in content for secret in secrets):
            return
        with log.open("r+b") as file:
            for secret in secrets:
                place = content.find(secret)
                while place >= 0:
                    file.seek(place)
                    file.write(b"*" * len(secret))
                    place = content.find(secret, place + len(secret))
    except FileNotFoundError:
        return


def _tokens() -> list[str]:
    values = (os.environ.get(name, "").strip() for name in _VARIABLES)
    return [value for value in values if value]


class _Scrubbed:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrub(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def scrubbed_output() -> Iterator[None]:
    """Keep the token out of everything that this process prints: by libraries, logging and tracebacks too."""
    # The interpreter prints an uncaught error after this context has ended.
    sys.excepthook = _show_scrubbed
    streams = [cast(TextIO, _Scrubbed(stream)) for stream in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        yield


def _show_scrubbed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(scrub("".join(traceback.format_exception(kind, error, trace))))
