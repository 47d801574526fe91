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
from mimicry.common.files import atomic_path

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
            tensors = {
                name: _entry(name, value, data_start) for name, value in header.items() if name != _METADATA
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterBroken(f"{path} is no readable safetensors file: {error}") from error
        end = max((entry.end for entry in tensors.values()), default=data_start)
        if end != size:
            raise AdapterBroken(f"{path} has {size} bytes where its header promises {end}")
        return cls(path=path, tensors=tensors, metadata=header.get(_METADATA, {}))

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
    """Copy the safetensors file `source` to `destination`, atomically and with a canonical header.

    Writers differ in the order of header entries from run to run; after this, equal tensors and metadata
    are equal bytes.
    """
    header, data_start, _ = _read_header(source)
    for value in header.values():
        if "data_offsets" in value:
            value["data_offsets"] = list(value["data_offsets"])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as data, atomic_path(destination) as temporary, temporary.open("wb") as file:
        data.seek(data_start)
        file.write(struct.pack("<Q", len(text)) + text)
        while chunk := data.read(1 << 20):
            file.write(chunk)


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    with path.open("rb") as file:
        size = path.stat().st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"it has {size} bytes only")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"it has {size} bytes, and a header of {length} is promised")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 - one kind of error for a bad file
    return header, 8 + length, size


def _entry(name: str, value: Any, data_start: int) -> TensorEntry:
    start, end = value["data_offsets"]
    shape = tuple(int(side) for side in value["shape"])
    if value["dtype"] not in _FLOATS:
        raise ValueError(f"{name} is of type {value['dtype']}, not of {', '.join(_FLOATS)}")
    width = _FLOATS[value["dtype"]][0].itemsize
    if end - start != width * math.prod(shape) or start < 0:
        raise ValueError(f"{name} takes {end - start} bytes where its shape {shape} needs another number")
    return TensorEntry(dtype=value["dtype"], shape=shape, start=data_start + start, end=data_start + end)
