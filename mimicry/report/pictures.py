"""The pictures of a report: small and large copies in its folder, each made once.

A copy is named after the contents that it was made of, so a picture that has not changed is not made again,
and one that has changed gets another name. What is known of the sources stands in a file beside the copies.
"""

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from tqdm import tqdm

from mimicry.common.errors import BatchFault
from mimicry.common.files import file_identity, read_json, sha256_file, write_json
from mimicry.study.comparison import fitted
from mimicry.study.images import read_rgb

PICTURES = "pictures"
# The longer sides of the copies, in pixels.
SMALL, LARGE = 224, 768
# By so much is a difference multiplied, to be seen.
GAIN = 10
_KNOWN = "sources.json"
# Raise it when copies are made in another way.
_VERSION = 1
# Below this many pixels a side a copy keeps every value: compression would be what one sees.
_LOSSLESS = 256
_COPY = re.compile(r"[0-9a-f]{24}-(small|large)\.(webp|\d+\.part)")
_THREADS = 4


@dataclass(frozen=True)
class Shot:
    """A picture to show: the file, or by how much it differs from `original`."""

    file: Path
    original: Path | None = None


@dataclass(frozen=True)
class Copy:
    """The copies of a picture: names in the report's folder, and the size of the small one in pixels."""

    small: str
    large: str
    width: int
    height: int


class PictureFolder:
    """The folder of copies of one report."""

    def __init__(self, report: Path, data_root: Path) -> None:
        """Read what is known of the sources.

        Args:
            data_root: names of sources are kept relative to it, so that a study may be moved.
        """
        self._folder = report / PICTURES
        self._data_root = data_root
        self._known = _read_known(self._folder / _KNOWN)
        self._used: dict[str, Any] = {}

    def copies(self, shots: Iterable[Shot]) -> dict[Shot, Copy]:
        """Return the copies of `shots`, made where they are not there; one that cannot be read has none.

        Copies that no shot needs are removed.

        Raises:
            BatchFault: a copy cannot be written.
        """
        wanted = list(dict.fromkeys(shots))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_THREADS) as pool:
                bar = tqdm(
                    pool.map(self._copy, wanted), total=len(wanted), desc="pictures", unit="", disable=None
                )
                made = dict(zip(wanted, bar, strict=True))
            write_json(self._folder / _KNOWN, {"version": _VERSION, "files": self._used})
            self._remove_others(made.values())
        except _CannotWriteError as error:
            raise BatchFault(f"--output: {error}; make room, or get the right to write") from error
        return {shot: copy for shot, copy in made.items() if copy is not None}

    def _copy(self, shot: Shot) -> Copy | None:
        try:
            content = [self._sha256(path) for path in (shot.file, shot.original) if path is not None]
            name = hashlib.sha256(repr((_VERSION, SMALL, LARGE, content)).encode()).hexdigest()[:24]
            small, large = (self._folder / f"{name}-{size}.webp" for size in ("small", "large"))
            if not (small.exists() and large.exists()):
                picture = _picture(shot)
                _save(picture, LARGE, large)
                _save(picture, SMALL, small)
            with Image.open(small) as image:
                width, height = image.size
        except OSError:
            return None
        return Copy(f"{PICTURES}/{small.name}", f"{PICTURES}/{large.name}", width, height)

    def _sha256(self, path: Path) -> str:
        identity = file_identity(path)
        if identity is None:
            raise FileNotFoundError(path)
        name = str(path.relative_to(self._data_root) if path.is_relative_to(self._data_root) else path)
        facts = list(identity)
        known = self._known.get(name)
        sha256 = known[1] if known is not None and known[0] == facts else sha256_file(path)
        self._used[name] = [facts, sha256]
        return str(sha256)

    def _remove_others(self, copies: Iterable[Copy | None]) -> None:
        used = {Path(name).name for copy in copies if copy is not None for name in (copy.small, copy.large)}
        for path in self._folder.iterdir():
            if _COPY.fullmatch(path.name) and path.name not in used:
                with suppress(OSError):
                    path.unlink()


class _CannotWriteError(Exception):
    """A copy cannot be written. Not an OSError, which means that a source cannot be read."""


def _picture(shot: Shot) -> Image.Image:
    """Return what a shot shows."""
    picture = read_rgb(shot.file)
    if shot.original is None:
        return picture
    original, _ = fitted(read_rgb(shot.original), picture)
    return ImageChops.difference(picture, original).point(
        [min(255, GAIN * value) for value in range(256)] * 3
    )


def _save(picture: Image.Image, longest: int, path: Path) -> None:
    copy = picture.copy()
    copy.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    lossless = max(copy.size) <= _LOSSLESS and max(picture.size) <= _LOSSLESS
    # Renamed as elsewhere, but not fsynced, which takes longer than all the rest: a copy can be made again.
    # Two threads may make the same copy, of two equal files.
    temporary = path.with_suffix(f".{threading.get_ident()}.part")
    try:
        copy.save(temporary, format="WEBP", lossless=lossless, quality=84, method=2)
        temporary.replace(path)
    except OSError as error:
        raise _CannotWriteError(f"{path} cannot be written: {error.strerror or error}") from error


def _read_known(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
        if content["version"] == _VERSION:
            return dict(_checked(content["files"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {}


def _checked(files: Any) -> Iterator[tuple[str, Any]]:
    for name, value in files.items():
        facts, sha256 = value
        if isinstance(facts, list) and isinstance(sha256, str):
            yield name, (facts, sha256)
