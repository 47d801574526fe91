"""Decoding many images to see whether they can be trained on, and remembering those that can.

A check of a whole study decodes tens of thousands of images, and the next call asks the same. What was found
good is remembered in the user's folder of caches, one small file for each folder of images, by name, size and
time of change; what was found bad is decoded again each time. The files are replaced as a whole, so several
processes are in nobody's way: at worst one's memory of a folder takes the place of another's. One that cannot
be read or written is not there.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.environment import cache_folder
from mimicry.common.files import read_json, sha256_text, write_json
from mimicry.common.images import ImageFolder, check_image

# Decoding a large scan needs a gigabyte.
_MOST_THREADS = 8
_VERSION = 1

# Is told how many images are done, of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be trained on.

    `lasting` is False when the file could not be read, which may be due to the disk or to permissions.
    """

    path: Path
    problem: str
    lasting: bool


def bad_images(folders: Iterable[ImageFolder], progress: Progress | None = None) -> list[BadImage]:
    """Decode the images of `folders`, several at a time, and return the bad ones in order."""
    memories = [_Memory.of(folder) for folder in folders]
    todo = [(memory, name) for memory in memories for name in memory.unknown()]
    bad = []
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        for number, found in enumerate(pool.map(lambda item: item[0].check(item[1]), todo), start=1):
            if found is not None:
                bad.append(found)
            if progress is not None:
                progress(number, len(todo))
    finally:
        # A stop signal does not wait for thousands of images.
        pool.shutdown(cancel_futures=True)
        for memory in memories:
            memory.save()
    return bad


class _Memory:
    """What is known of the images of one folder."""

    def __init__(self, folder: ImageFolder, file: Path, known: dict[str, Any]) -> None:
        self._folder = folder
        self._file = file
        self._known = known
        self._good = dict[str, list[int]]()

    @classmethod
    def of(cls, folder: ImageFolder) -> "_Memory":
        # By the real path: a link may lead elsewhere tomorrow.
        file = cache_folder("images") / f"{sha256_text(os.path.realpath(folder.path))}.json"
        try:
            content = read_json(file)
            known = content["good"] if content["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            known = {}
        return cls(folder, file, known if isinstance(known, dict) else {})

    def unknown(self) -> list[str]:
        """Return the names of the images that are to be decoded."""
        for name in self._folder.names:
            facts = _facts(self._folder.path / name)
            if facts is not None and self._known.get(name) == facts:
                self._good[name] = facts
        return [name for name in self._folder.names if name not in self._good]

    def check(self, name: str) -> BadImage | None:
        """Decode an image; on any thread."""
        path = self._folder.path / name
        facts = _facts(path)
        try:
            check_image(path)
        except OSError as error:
            return BadImage(path, error.strerror or str(error), lasting=error.errno is None)
        # One that was changed meanwhile is not remembered.
        if facts is not None and _facts(path) == facts:
            self._good[name] = facts
        return None

    def save(self) -> None:
        """Write down what is good, if that is news."""
        if self._good != self._known:
            with suppress(OSError):
                content = {"version": _VERSION, "folder": str(self._folder.path), "good": self._good}
                write_json(self._file, content)


def _facts(path: Path) -> list[int] | None:
    """Return size and time of change; None when there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
