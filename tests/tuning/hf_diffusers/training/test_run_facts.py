"""What a run records of its GPU, with a stand-in for nvidia-smi."""

from pathlib import Path

import pytest

from mimicry.tuning.hf_diffusers.training.records import nvidia_driver
from tests.tuning.hf_diffusers.sd3.parts import make_trainer
from tests.tuning.hf_diffusers.studio import Studio, training_run


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 580.95.05; echo 580.95.05", "580.95.05"),
        ("echo No devices were found; exit 6", None),
        ("exit 0", None),
        (None, None),
    ],
)
def test_the_driver_is_asked_for_its_version(
    script: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert nvidia_driver() == version


def test_the_cpu_has_none_of_it(studio: Studio, tmp_path: Path) -> None:
    make_trainer(studio, tmp_path)
    run = training_run(tmp_path)
    assert {run["numerics"][name] for name in ("cuda", "hip", "cudnn")} == {None}
    # Sisters are not compared by it.
    assert run["versions"]["nvidia_driver"] is None
    assert not [name for name in run["numerics"] if "driver" in name]
