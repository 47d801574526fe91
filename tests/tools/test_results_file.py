import json
from pathlib import Path

import pytest

from tools.results_file import Results, gpu, hardware

NVIDIA_SMI = """#!/usr/bin/env bash
[ "$4" = 1 ] && echo "NVIDIA H100 80GB HBM3, 81559 MiB, 9.0, 580.159.04" || exit 6
"""


@pytest.fixture
def second_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nvidia-smi know of a GPU with the number 1."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI, "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.usefixtures("second_gpu")
def test_the_hardware_has_the_first_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")

    assert hardware()["gpu"] == {
        "name": "NVIDIA H100 80GB HBM3",
        "memory.total": "81559 MiB",
        "compute_cap": "9.0",
        "driver_version": "580.159.04",
    }


@pytest.mark.usefixtures("second_gpu")
@pytest.mark.parametrize("visible", ["", "-1", "0"])
def test_there_is_no_gpu_where_none_is_visible(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert gpu() is None


def test_there_is_no_gpu_without_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert gpu() is None


def test_each_figure_is_written_when_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    results = Results("running", file, runs=3)

    results.add({"one mile [s]": 240.0})
    first = json.loads(file.read_text("utf-8"))
    results.fail("two miles", "out of breath")
    results.add({"legs are the same": True})
    second = json.loads(file.read_text("utf-8"))

    assert (first["runs"], first["figures"]) == (3, {"one mile [s]": 240.0})
    assert "problems" not in first
    assert second["figures"] == {"one mile [s]": 240.0, "legs are the same": True}
    assert second["problems"] == {"two miles": "out of breath"}
    assert "two miles: out of breath" in capsys.readouterr().out
