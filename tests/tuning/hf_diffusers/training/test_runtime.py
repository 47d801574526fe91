"""What a training is started on: which devices it takes, and how torch is switched."""

import os
from pathlib import Path

import pytest
import torch

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.training.runtime import Runtime
from mimicry.tuning.options.config import TuningConfig

CONFIG = TuningConfig(mixed_precision="no")


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_that_nobody_has_tried_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(kind))
    with pytest.raises(
        UsageError, match=f"of the kind {kind}; to train on the CPU, type ACCELERATE_TORCH_DE"
    ):
        Runtime.start(CONFIG, tmp_path)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    assert Runtime.start(CONFIG, tmp_path).device == torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", f"{kind}:0")
    with pytest.raises(UsageError, match=f"of the kind {kind}"):
        Runtime.start(CONFIG, tmp_path)


def test_deterministic_algorithms_need_no_filled_memory(tmp_path: Path) -> None:
    Runtime.start(TuningConfig(mixed_precision="no", deterministic=True), tmp_path)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_no_test_hears_of_the_determinism_of_another() -> None:
    """It comes after the one that asked for it."""
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
