"""Safetensors without torch, against the files of safetensors.torch; and broken ones in every way."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from mimicry.common.errors import AdapterBroken
from mimicry.tuning.adapters.safetensors_file import SafetensorsFile, TensorBits, write_canonically
from tests.tuning.lora_files import raw_safetensors

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
over_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def saved(path: Path, **tensors: torch.Tensor) -> dict[str, TensorBits]:
    save_file(tensors, path)
    return bits_of(SafetensorsFile.open(path))


def bits_of(file: SafetensorsFile) -> dict[str, TensorBits]:
    return {tensor.name: tensor for tensor in file.values()}


class TestValues:
    @over_dtypes
    def test_finite(self, dtype: torch.dtype, tmp_path: Path) -> None:
        extremes = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, -0.0], dtype=dtype)
        tensors = saved(tmp_path / "f", a=extremes, b=torch.randn(5, 7).to(dtype))
        assert tensors["a"].is_finite()
        assert tensors["b"].is_finite()

    @over_dtypes
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("index", [0, 17, 34])
    def test_not_finite(self, dtype: torch.dtype, value: float, index: int, tmp_path: Path) -> None:
        tensor = torch.ones(35, dtype=dtype)
        tensor[index] = value
        tensors = saved(tmp_path / "f", bad=tensor.reshape(5, 7), good=torch.ones(3, dtype=dtype))
        assert not tensors["bad"].is_finite()
        assert tensors["good"].is_finite()

    @over_dtypes
    def test_zero_of_either_sign(self, dtype: torch.dtype, tmp_path: Path) -> None:
        zeros = torch.tensor([0.0, -0.0, -0.0], dtype=dtype)
        tiny = zeros.clone()
        tiny[1] = torch.finfo(dtype).smallest_normal
        negative = zeros.clone()
        negative[2] = -1
        tensors = saved(tmp_path / "f", zeros=zeros, tiny=tiny, negative=negative)
        assert tensors["zeros"].is_zero()
        assert not tensors["tiny"].is_zero()
        assert not tensors["negative"].is_zero()

    def test_scalars_and_empty_tensors(self, tmp_path: Path) -> None:
        tensors = saved(tmp_path / "f", scalar=torch.tensor(math.nan), empty=torch.empty(0, 4))
        assert not tensors["scalar"].is_finite()
        assert tensors["empty"].is_finite()
        assert tensors["empty"].is_zero()
        assert tensors["empty"].shape == (0, 4)
        assert tensors["scalar"].shape == ()


def test_entries_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_file({"x": torch.ones(2, 3, dtype=torch.bfloat16)}, path, metadata={"who": "André\n"})
    file = SafetensorsFile.open(path)
    assert file.shapes == {"x": (2, 3)}
    data = path.read_bytes()[-12:]
    assert list(file.values()) == [TensorBits(name="x", dtype="BF16", shape=(2, 3), data=data)]
    assert file.metadata == {"who": "André\n"}


def test_no_metadata_and_no_tensors(tmp_path: Path) -> None:
    assert saved(tmp_path / "f") == {}
    file = SafetensorsFile.open(tmp_path / "f")
    assert file.shapes == {}
    assert file.metadata == {}


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
TWO = GOOD | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}


def changed(name: str, value: Any) -> bytes:
    return raw_safetensors({"a": GOOD["a"] | {name: value}}, bytes(8))


def second_at(start: Any, end: Any, size: int = 16) -> bytes:
    return raw_safetensors(TWO | {"b": TWO["b"] | {"data_offsets": [start, end]}}, bytes(size))


BROKEN = {
    "empty": b"",
    "seven bytes": b"1234567",
    "only a length": struct.pack("<Q", 0),
    "absurd length": struct.pack("<Q", 2**63) + b"{}",
    "length beyond the file": struct.pack("<Q", 3) + b"{}",
    "no JSON": raw_safetensors(b"hello"),
    "cut JSON": raw_safetensors(b'{"a": {'),
    "no UTF-8": raw_safetensors(b'{"\xff": 1}'),
    "UTF-16": raw_safetensors("{}".encode("utf-16")),
    "deep": raw_safetensors(b"[" * 200_000),
    "list": raw_safetensors([]),
    "number": raw_safetensors(7),
    "null": raw_safetensors(None),
    "entry is a list": raw_safetensors({"a": []}),
    "entry is a number": raw_safetensors({"a": 3}),
    "entry is a text": raw_safetensors({"a": "F32"}),
    "entry is null": raw_safetensors({"a": None}),
    "no dtype": raw_safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no shape": raw_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "no offsets": raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "one offset": changed("data_offsets", [0]),
    "three offsets": changed("data_offsets", [0, 8, 16]),
    "float offsets": changed("data_offsets", [0.0, 8.0]),
    "boolean offset": changed("data_offsets", [False, 8]),
    "text offsets": changed("data_offsets", "08"),
    "negative offsets": changed("data_offsets", [-8, 0]),
    "offsets turned round": changed("data_offsets", [8, 0]),
    "unknown dtype": changed("dtype", "I64"),
    "dtype is a list": changed("dtype", ["F32"]),
    "shape too small": changed("shape", [1]),
    "shape is a text": changed("shape", "2"),
    "shape of texts": changed("shape", ["2"]),
    "shape of floats": changed("shape", [2.0]),
    "shape of negatives": changed("shape", [-1, -2]),
    "infinite shape": raw_safetensors(
        b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}', bytes(8)
    ),
    "huge shape": changed("shape", [10**4000, 10**4000]),
    "overlap": second_at(0, 8, 8),
    "half overlap": second_at(4, 12, 12),
    "gap": second_at(12, 20, 20),
    "data that nobody owns": raw_safetensors(GOOD, bytes(9)),
    "data cut": raw_safetensors(GOOD, bytes(7)),
    "metadata is a list": raw_safetensors({"__metadata__": [], **GOOD}, bytes(8)),
    "metadata is null": raw_safetensors({"__metadata__": None, **GOOD}, bytes(8)),
    "metadata of numbers": raw_safetensors({"__metadata__": {"rank": 4}, **GOOD}, bytes(8)),
    "half a letter": raw_safetensors(b'{"__metadata__":{"a":"\\ud800"}}'),
    "half a letter in a name": raw_safetensors(
        b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    ),
}


class TestBroken:
    def test_the_cases_differ_from_a_good_file_only_in_their_fault(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(raw_safetensors(TWO, bytes(16)))
        assert set(SafetensorsFile.open(tmp_path / "f").shapes) == {"a", "b"}
        (tmp_path / "f").write_bytes(changed("shape", [2]))
        assert bits_of(SafetensorsFile.open(tmp_path / "f"))["a"].is_zero()

    @pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
    @pytest.mark.parametrize("use", ["open", "copy"])
    def test_is_refused(self, content: bytes, use: str, tmp_path: Path) -> None:
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with pytest.raises(AdapterBroken, match=r"broken\.safetensors"):
            SafetensorsFile.open(path) if use == "open" else write_canonically(path, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(AdapterBroken):
                SafetensorsFile.open(path)

    def test_every_truncation_and_one_byte_more(self, tmp_path: Path) -> None:
        whole = save({"x": torch.ones(3), "y": torch.ones(2, dtype=torch.bfloat16)})
        path = tmp_path / "f"
        for content in (*(whole[:length] for length in range(len(whole))), whole + b"\0"):
            path.write_bytes(content)
            with pytest.raises(AdapterBroken):
                SafetensorsFile.open(path)

    def test_mutations_never_end_in_another_error(self, tmp_path: Path) -> None:
        """Mutated headers are refused, or hold what they say: every value can then be looked at."""
        random, path = Random(7), tmp_path / "f"
        tensors = {f"t{i}": torch.ones(i + 1, 2, dtype=dtype) for i, dtype in enumerate(DTYPES.values())}
        whole = save(tensors, metadata={"format": "pt"})
        (length,) = struct.unpack("<Q", whole[:8])
        refused = 0
        for _ in range(1500):
            header = mutated(random, whole[8 : 8 + length])
            path.write_bytes(struct.pack("<Q", len(header)) + header + whole[8 + length :])
            try:
                file = SafetensorsFile.open(path)
            except AdapterBroken:
                refused += 1
                continue
            assert all(tensor.is_finite() in (True, False) for tensor in bits_of(file).values())
            assert bits_of(file).keys() == file.shapes.keys()
            write_canonically(path, tmp_path / "copy")
            assert load_file(tmp_path / "copy").keys() == file.shapes.keys()
        assert 1000 < refused < 1500


def mutated(random: Random, text: bytes) -> bytes:
    edits: list[Callable[[bytes, int], bytes]] = [
        lambda t, i: t[:i] + bytes([random.randrange(256)]) + t[i + 1 :],
        lambda t, i: t[:i] + random.choice(b'0123456789-.eE,:{}[]"').to_bytes(1, "big") + t[i + 1 :],
        lambda t, i: t[:i] + t[i + 1 :],
        lambda t, i: t[:i] + t[i : i + 5] + t[i:],
        lambda t, i: t.replace(
            b"[", random.choice([b"[-", b"[0,", b"[[", b"[1e9,", b"[null,", b"[true,"]), 1
        ),
        lambda t, i: t.replace(b"F32", random.choice([b"F16", b"F64", b"I8", b"", b"\\ud800"])),
    ]
    for _ in range(random.choice((1, 1, 2))):
        text = random.choice(edits)(text, random.randrange(len(text)))
    return text


class TestWriteCanonically:
    @staticmethod
    def shuffled(random: Random, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        """Return a file with the tensors in any order, in the header and in the data apart."""
        names = {torch.float32: "F32", torch.bfloat16: "BF16"}
        entries: dict[str, Any] = {}
        data = b""
        for name in random.sample(list(tensors), len(tensors)):
            tensor = tensors[name]
            content = bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            fields = {
                "dtype": names[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [len(data), len(data) + len(content)],
            }
            entries[name] = dict(random.sample(list(fields.items()), 3))
            data += content
        entries["__metadata__"] = dict(random.sample(list(metadata.items()), len(metadata)))
        header = dict(random.sample(list(entries.items()), len(entries)))
        return raw_safetensors(json.dumps(header, ensure_ascii=random.random() < 0.5).encode(), data)

    def test_equal_content_is_equal_bytes_and_loads(self, tmp_path: Path) -> None:
        random = Random(3)
        generator = torch.Generator().manual_seed(3)
        tensors = {
            f"t{i}é": torch.randn(i + 1, 3, generator=generator).to(dtype)
            for i, dtype in enumerate([torch.float32, torch.bfloat16] * 3)
        }
        metadata = {"format": "pt", "lora": '{"r": 4}', "z": "é"}
        source, copy, results = tmp_path / "source", tmp_path / "copy", set()
        for _ in range(10):
            source.write_bytes(self.shuffled(random, tensors, metadata))
            write_canonically(source, copy)
            results.add(copy.read_bytes())
        save_file(tensors, source, metadata=metadata)
        write_canonically(source, copy)
        results.add(copy.read_bytes())
        assert len(results) == 1
        loaded = load_file(copy)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
        assert all(loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())
        assert SafetensorsFile.open(copy).metadata == metadata

    def test_every_tensor_is_aligned(self, tmp_path: Path) -> None:
        tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(3), "c": torch.ones(1).double()}
        save_file(tensors, tmp_path / "source")
        write_canonically(tmp_path / "source", tmp_path / "copy")
        content = (tmp_path / "copy").read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        assert set(entries) == set(tensors)
        for entry in entries.values():
            start = 8 + length + entry["data_offsets"][0]
            assert start % {"F64": 8, "F32": 4, "BF16": 2}[entry["dtype"]] == 0

    def test_other_content_is_other_bytes(self, tmp_path: Path) -> None:
        contents = set()
        for value, metadata in ((1.0, "x"), (2.0, "x"), (1.0, "y")):
            save_file({"a": torch.tensor([value])}, tmp_path / "s", metadata={"m": metadata})
            write_canonically(tmp_path / "s", tmp_path / "c")
            contents.add((tmp_path / "c").read_bytes())
        assert len(contents) == 3

    def test_in_place(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        save_file({"b": torch.ones(2), "a": torch.zeros(2)}, path)
        write_canonically(path, path)
        once = path.read_bytes()
        write_canonically(path, path)
        assert path.read_bytes() == once
        assert torch.equal(load_file(path)["b"], torch.ones(2))
