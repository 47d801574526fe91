"""Remembering which files of a folder passed a check, so that the next call need not check them again.

The user's cache folder has one small file for each folder. For every file that passed, by name, it holds
facts such as size and time of change, and what the check found; files that failed are not remembered. The
small files are replaced as a whole, so several processes can use them at once; at worst one replaces what
another has just written. A small file that cannot be read or written is ignored.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mimicry.common.environment import cache_folder
from mimicry.common.files import read_json, sha256_text, write_json

_VERSION = 1


class FileMemory:
    """Which files of one folder passed a check. Facts are values that JSON gives back unchanged."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Read what earlier checks remembered.

        Args:
            kind: the name of the check, which has a cache folder of its own.
        """
        self._folder = folder
        # By the real path: a link may lead elsewhere tomorrow.
        self._file = cache_folder(kind) / f"{sha256_text(os.path.realpath(folder))}.json"
        self._known, self._known_findings = _read(self._file)
        self._good, self._findings = dict[str, Any](), dict[str, Any]()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was remembered."""
        return not self._known

    def knows(self, name: str, facts: Any) -> bool:
        """Return whether the file passed when it had these facts; if so it stays remembered.

        For a missing file the facts are None, and the answer is no.
        """
        if facts is None or self._known.get(name) != facts:
            return False
        self._good[name] = facts
        return True

    def recall(self, name: str, facts: Any) -> Any:
        """Return what was found of the file when it had these facts; None if nothing is known.

        If something is, the file stays remembered.
        """
        if name not in self._known_findings or not self.knows(name, facts):
            return None
        self._findings[name] = self._known_findings[name]
        return self._findings[name]

    def keep(self, name: str, facts: Any, found: Any = None) -> None:
        """Remember a file that passed, and what was found of it; on any thread."""
        self._good[name] = facts
        if found is not None:
            self._findings[name] = found

    def save(self) -> None:
        """Write down the files that passed this time, if anything changed."""
        if (self._good, self._findings) != (self._known, self._known_findings):
            content = {"version": _VERSION, "folder": str(self._folder), "good": self._good}
            if self._findings:
                content["found"] = self._findings
            with suppress(OSError):
                write_json(self._file, content)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the facts of the files that passed, and what was found of them."""
    try:
        content = read_json(file)
        known = content["good"] if content["version"] == _VERSION else {}
        found = content.get("found", {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return {}, {}
    return (known, found) if isinstance(known, dict) and isinstance(found, dict) else ({}, {})
