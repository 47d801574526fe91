"""Remembering which files of a folder were found good, so that the next call need not look again.

What is remembered lies in the user's folder of caches, one small file for each folder, by name: the facts,
such as size and time of change, that a file had when it was found good. What was found bad is not remembered.
The files are replaced as a whole, so several processes are in nobody's way: at worst one's memory of a folder
takes the place of another's. One that cannot be read or written is not there.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mimicry.common.environment import cache_folder
from mimicry.common.files import read_json, sha256_text, write_json

_VERSION = 1


class FileMemory:
    """What is known of the files of one folder. Facts are values that JSON gives back as they were."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Read what an earlier check remembered.

        Args:
            kind: names the folder of caches: what was found good for one purpose is not so for another.
        """
        self._folder = folder
        # By the real path: a link may lead elsewhere tomorrow.
        self._file = cache_folder(kind) / f"{sha256_text(os.path.realpath(folder))}.json"
        self._known = _read(self._file)
        self._good = dict[str, Any]()

    def knows(self, name: str, facts: Any) -> bool:
        """Return whether the file was found good when it had these facts; if so it stays remembered.

        Of a file that is not there the facts are None, and it is not known.
        """
        if facts is None or self._known.get(name) != facts:
            return False
        self._good[name] = facts
        return True

    def keep(self, name: str, facts: Any) -> None:
        """Remember a file that was found good; on any thread."""
        self._good[name] = facts

    def save(self) -> None:
        """Write down what is good, and nothing else, if that is news."""
        if self._good != self._known:
            with suppress(OSError):
                content = {"version": _VERSION, "folder": str(self._folder), "good": self._good}
                write_json(self._file, content)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        known = content["good"] if content["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
