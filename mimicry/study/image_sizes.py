"""Width and height of images from the first bytes of their files.

A plan asks for tens of thousands of them, and Pillow takes long to open a file. Whatever is out of the
ordinary is left to Pillow, and what cannot be told is left to the decoding before training.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from mimicry.study.images import ON_ITS_SIDE, ORIENTATION, header_size

Size = tuple[int, int]

_CHUNK_BYTES = 4096
# Markers of JPEG that begin a frame, and tell its size.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_SEGMENT = 0xE1


class _UnusualError(Exception):
    """The file is of a kind that is left to Pillow."""


def stated_sizes(folder: Path, names: Iterable[str]) -> dict[str, Size]:
    """Return the size of each image in `folder` by name, without those that do not tell theirs."""
    # Strings, since making forty thousand paths takes as long as reading what they lead to.
    found = {name: _stated_size(os.path.join(folder, name)) for name in names}  # noqa: PTH118
    return {name: size for name, size in found.items() if size is not None}


def _stated_size(path: str) -> Size | None:
    """Return width and height as the file states them, turned as its EXIF says; None where it does not."""
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


def _size_by_pillow(path: Path) -> Size | None:
    from mimicry.study.images import header_size

    return header_size(path)
