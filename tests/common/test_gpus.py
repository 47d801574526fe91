"""Which GPUs there are, as a stand-in for nvidia-smi tells it."""

import pytest
from mimicry.common.hardware import Gpu, find_gpus, gpu_variables

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
