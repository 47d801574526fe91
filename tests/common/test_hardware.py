"""Which GPUs there are, as a stand-in for nvidia-smi tells it."""

from pathlib import Path

import pytest

from mimicry.common import hardware
from mimicry.common.hardware import (
    Gpu,
    find_gpus,
    free_host_bytes,
    gpu_variables,
    group_free_bytes,
    host_memory_problem,
)
from tests.fake_gpus import FakeGpus

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
"""
CUT = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc-3)
  MIG 3g.20gb     Device  1: (UUID: MIG-dddd-4)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)
"""


def names() -> list[str]:
    return [gpu.name for gpu in find_gpus()]


def test_gpus_are_numbered_as_nvidia_smi_does(fake_gpus: FakeGpus) -> None:
    fake_gpus.listing(TWO)
    assert find_gpus() == [Gpu("0", "GPU-aaaa-1"), Gpu("1", "GPU-bbbb-2")]


def test_a_gpu_that_is_cut_counts_as_its_instances(fake_gpus: FakeGpus) -> None:
    fake_gpus.listing(CUT)
    assert names() == ["MIG-cccc-3", "MIG-dddd-4", "1"]


def test_a_driver_that_does_not_answer_lists_none(fake_gpus: FakeGpus) -> None:
    fake_gpus.listing(TWO, code=9)
    assert names() == []


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", ["1"]),
        ("3, 1", ["3", "1"]),
        ("GPU-bbbb-2,MIG-cccc-3", ["GPU-bbbb-2", "MIG-cccc-3"]),
        ("1,-1,0", ["1"]),  # as CUDA does
        ("1,1", ["1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_what_is_set_already_is_respected(
    visible: str, found: list[str], fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus.listing(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names() == found


def test_numbers_are_those_of_nvidia_smi_unless_the_user_has_chosen_an_order() -> None:
    ours = {"CUDA_VISIBLE_DEVICES": "2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert gpu_variables(["2"], {}) == ours
    assert gpu_variables(["0", "2"], {"CUDA_VISIBLE_DEVICES": "2,0"}) == {"CUDA_VISIBLE_DEVICES": "0,2"}
    assert gpu_variables(["2"], {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == {"CUDA_VISIBLE_DEVICES": "2"}
    assert gpu_variables([], {})["CUDA_VISIBLE_DEVICES"] == ""


GIB = 1 << 30


def test_half_of_what_is_free_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_host_bytes", lambda: 8 * GIB)
    assert host_memory_problem(0) is None
    assert host_memory_problem(4 * GIB) is None
    assert host_memory_problem(5 * GIB) == "5.0 GiB, more than half of the 8.0 GiB of free host memory"


def test_this_machine_has_some() -> None:
    assert 1 << 20 < free_host_bytes() < 1 << 50


class TestControlGroups:
    def write(self, folder: Path, limit: str, used: int, *, cache: int = 0, old: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
        for name, value in zip(names, (limit, used), strict=True):
            (folder / f"memory.{name}").write_text(f"{value}\n")
        key = "total_inactive_file" if old else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\n{key} {cache}\n")

    def found(self, root: Path, line: str) -> list[int]:
        (root / "membership").write_text(f"12:cpu:/x\n{line}\n")
        return list(group_free_bytes(root / "membership", root))

    def test_a_limit_anywhere_above_counts(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a" / "b", "max", 70)
        self.write(tmp_path / "a", "1000", 300, cache=50)
        assert self.found(tmp_path, "0::/a/b") == [750]
        self.write(tmp_path / "a" / "b", "400", 390)
        assert self.found(tmp_path, "0::/a/b") == [10, 750]

    def test_the_older_version_too(self, tmp_path: Path) -> None:
        self.write(tmp_path / "memory" / "job", "500", 100, cache=20, old=True)
        assert self.found(tmp_path, "4:memory:/job") == [420]

    def test_one_that_is_over_its_limit_has_nothing_left(self, tmp_path: Path) -> None:
        self.write(tmp_path / "a", "100", 300)
        assert self.found(tmp_path, "0::/a") == [0]

    def test_none_is_no_fault(self, tmp_path: Path) -> None:
        assert self.found(tmp_path, "0::/gone") == []
        assert list(group_free_bytes(tmp_path / "nowhere", tmp_path)) == []
