"""The trainer on a GPU; run by `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch

from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.studio import Studio, training_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def test_the_same_artist_twice_is_the_same_bytes_when_deterministic(studio: Studio, tmp_path: Path) -> None:
    words = ("--max_train_steps=3", "--mixed_precision=bf16", "--cache_latents", "--deterministic")
    first, second = (train(studio, tmp_path / name, *words) for name in ("first", "second"))
    assert first.sha256 == second.sha256
    run = training_run(tmp_path / "first")
    assert run["numerics"]["device"] == torch.cuda.get_device_name()
    assert run["peak_memory_bytes"] > 0


def test_the_conditioning_table_keeps_every_bit(studio: Studio, tmp_path: Path) -> None:
    words = ("--max_train_steps=3", "--mixed_precision=bf16", "--cache_latents", "--deterministic")
    without = train(studio, tmp_path / "without", *words)
    tabled = train(studio, tmp_path / "with", *words, "--conditioning_table")
    assert tabled.sha256 == without.sha256
