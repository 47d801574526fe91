"""Decodes many images: can they be trained on, and what tells them from their originals?

What was found of good ones is remembered by name, size and time, and by those of their originals.
"""

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mimicry.common.environment import processor_count
from mimicry.common.errors import TrainingFailed
from mimicry.common.files import FileMemory, canonical_json, sha256_text
from mimicry.common.text import first_few
from mimicry.study.comparison import Comparison, Pair, judged
from mimicry.study.images import (
    AS_THEY_ARE,
    ON_ITS_SIDE,
    ORIENTATION,
    ImageFacts,
    ImageFolder,
    ImageRecord,
    Reading,
    check_image,
    header_size,
)
from mimicry.study.pairing import Pairing

# Decoding a large scan needs a gigabyte.
MOST_THREADS = 8
# So many bad images of a folder are named one by one.
_FEW = 3

# Called with the number of images that are done, and the number of all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be trained on; `lasting` is False where that may be due to disk or permissions."""

    path: Path
    problem: str
    lasting: bool
    stem: str


@dataclass(frozen=True)
class Examined:
    """What is known of a decoded image; `original` and `comparison` are None where it has no original."""

    facts: ImageFacts
    original: ImageFacts | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Examination:
    """What was found in sets of images: the bad ones, in order, and by set and name what the others are."""

    bad: list[BadImage]
    found: list[dict[str, Examined]]


def bad_images(
    folders: Iterable[ImageFolder],
    progress: Progress | None = None,
    *,
    reading: Reading = AS_THEY_ARE,
    anew: bool = False,
) -> list[BadImage]:
    sets = [Pairing(folder) for folder in folders]
    return examine(sets, progress, reading=reading, anew=anew).bad


def unreadable(bad: Sequence[BadImage]) -> list[str]:
    """Return a line for each bad image; where a folder has many, one line for all of them."""
    by_folder: dict[Path, list[str]] = {}
    for image in bad:
        by_folder.setdefault(image.path.parent, []).append(image.problem)
    lines = []
    for folder, problems in by_folder.items():
        if len(problems) > _FEW:
            problems = [f"{problems[0]}; and {len(problems) - 1} more images of {folder} cannot be used"]
        lines += problems
    return lines


def examine(
    sets: Sequence[Pairing],
    progress: Progress | None = None,
    *,
    reading: Reading = AS_THEY_ARE,
    anew: bool = False,
) -> Examination:
    """Decode the images of `sets`, several at a time, and compare each with its original.

    With `anew`, images that were found good before are decoded as well.
    """
    rooms = [_Room(pairing, reading) for pairing in sets]
    todo = [(room, name) for room in rooms for name in room.unknown(anew=anew)]
    bad = []
    pool = ThreadPoolExecutor(min(MOST_THREADS, processor_count()))
    try:
        for number, found in enumerate(pool.map(lambda item: item[0].look_at(item[1]), todo), start=1):
            if found is not None:
                bad.append(found)
            if progress is not None:
                progress(number, len(todo))
    finally:
        # Do not make a stop signal wait for thousands of images.
        pool.shutdown(cancel_futures=True)
        for room in rooms:
            room.conclude()
    return Examination(bad, [room.found for room in rooms])


def remembered(pairing: Pairing, reading: Reading = AS_THEY_ARE) -> dict[str, Examined]:
    """Return what earlier calls found of images that were not changed since, by name; nothing is decoded."""
    room = _Room(pairing, reading)
    room.unknown()
    return room.found


def refuse_changed_images(images: ImageFolder, records: Sequence[ImageRecord]) -> None:
    """Raise TrainingFailed where images are no longer those that a training began with."""
    changed = images.changed_since(records)
    if changed:
        raise TrainingFailed(
            f"images were changed while it was trained on them: {first_few(changed)}; nothing is "
            f"published, and the same command trains on what is there now"
        )


class _Room:
    def __init__(self, pairing: Pairing, reading: Reading) -> None:
        self._pairing = pairing
        self._reading = reading
        images, original = pairing.images, pairing.original
        self._memory = FileMemory("images" if original is None else "comparisons", images.path)
        self._pairs: dict[str, tuple[Examined, Pair, list[Any] | None]] = {}
        self._left: set[str] = set()
        self.found: dict[str, Examined] = {}

    @cached_property
    def _originals(self) -> str | None:
        original = self._pairing.original
        if original is None:
            return None
        return sha256_text(canonical_json([[path.name, _facts(path)] for path in original.paths]))

    def unknown(self, *, anew: bool = False) -> list[str]:
        """Return the names of the images that are to be decoded, and note what is known of the others."""
        names = self._pairing.images.names
        if not anew and not self._memory.is_empty:
            for name in names:
                found = _from_json(self._memory.recall(name, self._identity(name)) or {})
                if found is not None:
                    self.found[name] = found
        unknown = [name for name in names if name not in self.found]
        if unknown and self._pairing.original is not None:
            # One is compared with the originals of the others.
            self.found.clear()
            unknown = list(names)
        self._left = set(unknown)
        return unknown

    def look_at(self, name: str) -> BadImage | None:
        images, original = self._pairing.images, self._pairing.original
        path, before = images.path / name, self._identity(name)
        self._left.discard(name)
        try:
            picture, facts = check_image(path, self._reading)
        except OSError as error:
            return BadImage(path, error.strerror or str(error), error.errno is None, images.stem(name))
        partner = self._pairing.partner(name)
        if original is not None and partner is not None:
            try:
                other, original_facts = check_image(original.path / partner, self._reading)
            except OSError:
                pass  # it is for the training on the original art to complain of
            else:
                pair = Pair.measure(images.stem(name), picture, other)
                self._pairs[name] = Examined(facts, original_facts), pair, before
                return None
        self._keep(name, Examined(facts), before)
        return None

    def conclude(self) -> None:
        # After a stop signal some are missing, and the others are not judged without them.
        pairs = {} if self._left else dict(sorted(self._pairs.items()))
        comparisons = judged([pair for _, pair, _ in pairs.values()])
        for (name, (found, _, before)), comparison in zip(pairs.items(), comparisons, strict=True):
            self._keep(name, replace(found, comparison=comparison), before)
        self._memory.save()

    def _keep(self, name: str, found: Examined, before: list[Any] | None) -> None:
        self.found[name] = found
        # Not if the file was changed meanwhile.
        if before is not None and self._identity(name) == before:
            self._memory.keep(name, before, asdict(found))

    def _identity(self, name: str) -> list[Any] | None:
        facts = _facts(self._pairing.images.path / name)
        if facts is None:
            return None
        reading = [self._reading.convert_profiles, self._reading.source_resolution]
        if self._originals is None:
            return [*facts, *reading]
        return [*facts, *reading, self._pairing.partner(name), self._originals]


def _facts(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _from_json(found: Mapping[str, Any]) -> Examined | None:
    try:
        original, comparison = found["original"], found["comparison"]
        return Examined(
            ImageFacts(**found["facts"]),
            None if original is None else ImageFacts(**original),
            None if comparison is None else Comparison(**comparison),
        )
    except (KeyError, TypeError):
        return None


Size = tuple[int, int]

_CHUNK_BYTES = 4096
# Markers of JPEG that begin a frame, and tell its size.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_SEGMENT = 0xE1


class _UnusualError(Exception):
    """The file is of a kind that is left to Pillow."""


def stated_sizes(folder: Path, names: Iterable[str]) -> dict[str, Size]:
    """Return the size of each image in `folder` by name, turned as EXIF says, where the file states it."""
    # Strings, since making forty thousand paths takes as long as reading what they lead to.
    found = {name: _stated_size(os.path.join(folder, name)) for name in names}  # noqa: PTH118
    return {name: size for name, size in found.items() if size is not None}


def _stated_size(path: str) -> Size | None:
    try:
        # A pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _size(descriptor)
    except (OSError, struct.error, IndexError):
        return None
    except _UnusualError:
        return header_size(Path(path))
    finally:
        os.close(descriptor)


def _size(descriptor: int) -> Size | None:
    start = os.pread(descriptor, _CHUNK_BYTES, 0)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(descriptor, start)
    if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
        if b"eXIf" in start or b"Orientation" in start:
            raise _UnusualError
        width, height = struct.unpack_from(">II", start, 16)
        return width, height
    if start.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", start, 18)
        if struct.unpack_from("<I", start, 14)[0] < 40:  # the header of OS/2
            raise _UnusualError
        return width, abs(height)
    # TIFF, WebP, AVIF.
    if start[:4] in (b"II*\0", b"MM\0*", b"RIFF") or start[4:8] == b"ftyp":
        raise _UnusualError
    return None


def _jpeg_size(descriptor: int, start: bytes) -> Size | None:
    """Go from segment to segment, of two bytes for its marker and two for its length, up to the frame."""
    offset, read_from, chunk, turned = 2, 0, start, False
    while True:
        place = offset - read_from
        if place + 9 > len(chunk):
            chunk, read_from, place = os.pread(descriptor, _CHUNK_BYTES, offset), offset, 0
        marker, length = struct.unpack_from(">xBH", chunk, place)
        if chunk[place] != 0xFF:
            return None
        if marker == 0xFF:  # a byte that fills up
            offset += 1
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", chunk, place + 5)
            return (height, width) if turned else (width, height)
        if marker == _EXIF_SEGMENT:
            segment = os.pread(descriptor, length - 2, offset + 4)
            if segment.startswith(b"Exif\0\0"):
                turned = _orientation(segment[6:]) in ON_ITS_SIDE
            elif b"Orientation" in segment:  # in the words of XMP
                raise _UnusualError
        offset += 2 + length


def _orientation(tiff: bytes) -> int:
    """Return the orientation in EXIF data, a small TIFF file; 1, upright, where there is none."""
    order = "<" if tiff.startswith(b"II") else ">"
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == ORIENTATION:
            return int(value)
    return 1
