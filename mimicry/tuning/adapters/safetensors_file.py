"""Safetensors files without torch: read the header, look at the values, write the header canonically.

The format (https://github.com/huggingface/safetensors): eight bytes, the little-endian length of the
header; the header, a JSON object from tensor names to dtype, shape and data offsets; then the data.
numpy has no bfloat16, and the orchestrator does not import torch, hence this module.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import atomic_path, canonical_json

_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"

# Unsigned integers of the same width, and the mask of the exponent, whose bits are all set in inf and NaN.
_FLOATS: dict[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<u8"), 0x7FF0000000000000),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `start` and `end` are offsets in bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file whose header was read and fits the size of the file."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Read the header of `path`.

        Raises:
            AdapterBroken: the file is not there, truncated, too long, or no safetensors file of floats.
        """
        try:
            header, data_start, size = _read_header(path)
            metadata = _checked_metadata(header.pop(_METADATA, {}))
            tensors = {name: _entry(name, value, data_start) for name, value in header.items()}
            _check_layout(tensors, data_start, size)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AdapterBroken(f"{path} is no readable safetensors file: {error}") from error
        return cls(path=path, tensors=tensors, metadata=metadata)

    def is_finite(self, name: str) -> bool:
        """Return whether every value of the tensor is a number, and not infinite."""
        bits, exponent = self._bits(name)
        return not bool(np.any((bits & exponent) == exponent))

    def is_zero(self, name: str) -> bool:
        """Return whether every value of the tensor is zero, of either sign."""
        bits, _ = self._bits(name)
        # Shifting the sign out leaves zero for both zeros.
        return not bool(np.any(bits << 1))

    def _bits(self, name: str) -> tuple[np.ndarray[Any, np.dtype[Any]], Any]:
        entry = self.tensors[name]
        kind, exponent = _FLOATS[entry.dtype]
        count = math.prod(entry.shape)
        bits = np.fromfile(self.path, dtype=kind, count=count, offset=entry.start)
        return bits, kind.type(exponent)


def write_canonically(source: Path, destination: Path) -> None:
    """Copy the safetensors file `source` to `destination`, atomically and in a canonical order.

    Writers differ in the order of header entries from run to run; after this, equal tensors and metadata
    are equal bytes.

    Raises:
        AdapterBroken: see `SafetensorsFile.open`.
    """
    file = SafetensorsFile.open(source)
    # Wide types first: the data of each tensor then begins at a multiple of its width.
    names = sorted(file.tensors, key=lambda name: (-_width(file.tensors[name].dtype), name))
    header: dict[str, Any] = {_METADATA: dict(file.metadata)} if file.metadata else {}
    offset = 0
    for name in names:
        entry = file.tensors[name]
        end = offset + entry.end - entry.start
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = canonical_json(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with source.open("rb") as data, atomic_path(destination) as temporary, temporary.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            entry = file.tensors[name]
            data.seek(entry.start)
            out.write(data.read(entry.end - entry.start))


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    with path.open("rb") as file:
        size = path.stat().st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"it has {size} bytes only")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"it has {size} bytes, and a header of {length} is promised")
        header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 - one kind of error for a bad file
    return header, 8 + length, size


def _checked_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TypeError("its metadata are no object of texts")
    # JSON lets half a surrogate pair through, which cannot be written again.
    "".join((*value, *value.values())).encode("utf-8")
    return value


def _entry(name: str, value: Any, data_start: int) -> TensorEntry:
    name.encode("utf-8")
    dtype, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in _FLOATS:
        raise ValueError(f"{name} is of type {dtype}, not of {', '.join(_FLOATS)}")
    if not isinstance(shape, list) or not all(_is_count(number) for number in (*shape, start, end)):
        raise ValueError(f"{name} has shape {shape} and offsets {start}, {end}, which are no whole numbers")
    if end - start != _width(dtype) * math.prod(shape):
        raise ValueError(f"{name} takes {end - start} bytes where its shape {shape} needs another number")
    return TensorEntry(dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end)


def _check_layout(tensors: Mapping[str, TensorEntry], data_start: int, size: int) -> None:
    """Refuse gaps and overlaps: the tensors fill the file from the end of the header to its last byte."""
    expected = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != expected:
            raise ValueError(f"{name} begins at byte {entry.start} where {expected} is expected")
        expected = entry.end
    if expected != size:
        raise ValueError(f"it has {size} bytes where its header promises {expected}")


def _is_count(number: Any) -> bool:
    return type(number) is int and number >= 0


def _width(dtype: str) -> int:
    return _FLOATS[dtype][0].itemsize
