"""Safetensors files without torch: read the header, check the values, write them in a canonical order.

The format is https://github.com/huggingface/safetensors. numpy knows no bfloat16, so values are looked at as
bits.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import atomic_path, canonical_json

_METADATA = "__metadata__"
# A file begins with the length of its header.
_LENGTH_BYTES = 8
# For each type: bytes of a value, and the mask of its exponent, whose bits are all set in inf and NaN.
_FLOATS = {
    "F64": (8, 0x7FF0000000000000),
    "F32": (4, 0x7F800000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
}


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file of floats whose header was read and fits its size; `shapes` are by tensor."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Read the header of `path`; AdapterBroken where it is not a whole safetensors file of floats."""
        from safetensors import SafetensorError, safe_open

        shapes = {}
        try:
            # It names a missing file without its number, and a folder in words of its own.
            with path.open("rb"):
                pass
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
                for name in file.keys():  # noqa: SIM118 - it is not a dict
                    tensor = file.get_slice(name)
                    if (dtype := tensor.get_dtype()) not in _FLOATS:
                        raise ValueError(  # noqa: TRY301
                            f"{name} is of type {dtype}, not one of {', '.join(_FLOATS)}"
                        )
                    shapes[name] = tuple(tensor.get_shape())
            if metadata is None and _METADATA in _read_header(path):
                raise ValueError(f"{_METADATA} is null")  # noqa: TRY301 - the library lets it through
        except (OSError, ValueError, SafetensorError) as error:
            raise _unreadable(path, error) from error
        return cls(path=path, shapes=shapes, metadata=metadata or {})

    def values(self) -> Iterator["TensorBits"]:
        """Read the file once and yield the values of each tensor; AdapterBroken as for `open`."""
        from safetensors import SafetensorError, deserialize

        try:
            tensors = deserialize(self.path.read_bytes())  # type: ignore[no-untyped-call]
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.path, error) from error
        for name, entry in tensors:
            yield TensorBits(name, entry["dtype"], tuple(entry["shape"]), entry["data"])


@dataclass(frozen=True)
class TensorBits:
    """The values of one tensor as bytes, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def is_finite(self) -> bool:
        bits = self._integers()
        exponent = bits.dtype.type(_FLOATS[self.dtype][1])
        return not bool(((bits & exponent) == exponent).any())

    def is_zero(self) -> bool:
        """Return whether every value is zero, of either sign."""
        # Shifting the sign out leaves zero for both zeros.
        return not bool((self._integers() << 1).any())

    def _integers(self) -> Any:
        import numpy as np  # imported late: `apply_tuning --help` does without it

        return np.frombuffer(self.data, dtype=f"<u{_FLOATS[self.dtype][0]}")


def header_and_size(path: Path) -> tuple[bytes, int] | None:
    """Return the header of a safetensors file, and its bytes in all; None where it cannot be read.

    Two files of which these are equal differ in the values of their tensors alone.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            count = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = file.read(min(count, size))
    except OSError:
        return None
    return (header, size) if len(header) == count > 0 else None


def write_canonically(source: Path, destination: Path) -> None:
    """Copy `source` to `destination`, atomically: equal tensors and metadata become equal bytes."""
    file = SafetensorsFile.open(source)
    # Wide types first: the data of each tensor then begins at a multiple of its width.
    tensors = sorted(file.values(), key=lambda tensor: (-_FLOATS[tensor.dtype][0], tensor.name))
    header: dict[str, Any] = {_METADATA: dict(file.metadata)} if file.metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + len(tensor.data)
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = canonical_json(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomic_path(destination) as temporary, temporary.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            out.write(tensor.data)


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
        return header


def _unreadable(path: Path, error: Exception) -> AdapterBroken:
    return AdapterBroken(f"{path} is not a readable safetensors file: {error}")
