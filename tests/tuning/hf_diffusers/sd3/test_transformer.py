"""How the transformer is read, and that a run with a conditioning table is the run without."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from mimicry.common import hardware
from mimicry.tuning.hf_diffusers.sd3.modulation import CachedModulationTransformer
from mimicry.tuning.hf_diffusers.sd3.transformer import (
    cache_modulation,
    cache_obstacle,
    read_transformer,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    "flags",
    [
        ("--mixed_precision=no",),
        ("--mixed_precision=bf16",),
        ("--mixed_precision=bf16", "--train_batch_size=2", "--gradient_accumulation_steps=2"),
        ("--mixed_precision=bf16", "--train_batch_size=4", "--gradient_checkpointing", "--random_flip"),
    ],
    ids=["fp32", "bf16", "batches of 2", "batches of 4, checkpointed"],
)
def test_the_table_changes_no_byte_of_the_adapter(
    flags: tuple[str, ...], studio: Studio, tmp_path: Path
) -> None:
    flags = ("--upcast_before_saving", "--max_train_steps=3", "--learning_rate=0.01", *flags)
    train(studio, tmp_path / "without", *flags)
    train(studio, tmp_path / "with", *flags, "--conditioning_table")
    assert (tmp_path / "without" / WEIGHTS).read_bytes() == (tmp_path / "with" / WEIGHTS).read_bytes()
    first, second = (training_run(tmp_path / name) for name in ("without", "with"))
    assert first["recipe_hash"] == second["recipe_hash"]
    assert first["final_loss"] == second["final_loss"]
    assert first["memory"]["conditioning_table"] is False
    assert second["memory"]["conditioning_table"] is True


def test_a_layer_that_the_adapter_trains_is_not_replaced(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = "--lora_layers=attn.to_q,norm1.linear,norm_out.linear"
    trainer = make_trainer(studio, tmp_path, "--conditioning_table", layers)
    assert type(trainer.model.transformer) is SD3Transformer2DModel
    trainer.take_step(1)
    said = capsys.readouterr().out
    assert "no conditioning table: the adapter trains transformer_blocks.0.norm1.linear, " in said
    assert ", ...\n" in said


def test_weights_that_cannot_be_read_one_by_one_are_not_replaced(studio: Studio, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(studio.base_model, model)
    base, config = BaseModel(model), TuningConfig()
    assert cache_obstacle(base, config, [], 1) is None
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert "are not safetensors files" in str(cache_obstacle(base, config, [], 1))


def test_a_table_that_the_host_cannot_hold_is_not_made(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--conditioning_table", "--max_train_steps=2", "--mixed_precision=bf16")
    train(studio, tmp_path / "with", *flags)
    said = next(line for line in capsys.readouterr().out.splitlines() if "conditioning table" in line)
    assert re.fullmatch(r"conditioning table: 2 rows, \d\.\d MiB of host memory", said)
    asked: list[int] = []

    def free() -> int:
        asked.append(0)
        return 20_000

    monkeypatch.setattr(hardware, "free_host_bytes", free)
    train(studio, tmp_path / "without", *flags)
    said = next(line for line in capsys.readouterr().out.splitlines() if "conditioning table" in line)
    assert said == (
        "no conditioning table: with 2 pairs of timestep and prompt it would take 0.0 GiB, more than half of "
        "the 0.0 GiB of free host memory"
    )
    assert len(asked) == 1
    assert (tmp_path / "with" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()
    assert training_run(tmp_path / "without")["memory"]["conditioning_table"] is False


def test_rows_cover_what_training_draws_and_what_else_is_asked_for(studio: Studio, tmp_path: Path) -> None:
    trainer = make_trainer(studio, tmp_path, "--conditioning_table", "--train_batch_size=2")
    base, config, source = BaseModel(studio.base_model), trainer.config, trainer.batches
    trained = source.modulation_keys()
    own = trainer.model.modulation
    more = cache_modulation(
        trainer.model.transformer,
        base,
        config,
        timesteps_T=source.maker.sigmas.timesteps,
        pooled_NP=source.maker.prompts.pooled_NP,
        keys=[*trained, (0, 0), (999, 0), (999, 0)],
        batch_size=2,
    )
    assert own is not None
    assert more is not None
    assert 1 < len(own.place_of) <= 4  # two steps of two samples
    assert {prompt for _, prompt in trained} == {0}
    assert set(more.place_of) == {*own.place_of, (0, 0), (999, 0)}
    for level, _ in own.place_of:
        assert torch.equal(more.rows([level, 0], [0, 0])[0], own.rows([level], [0])[0])


@pytest.mark.parametrize("cached", [False, True])
def test_weights_go_straight_to_the_device(
    cached: bool, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    original = SD3Transformer2DModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *words: Any, **more: Any) -> Any:
        asked.append(more)
        return original(cls, *words, **more)

    monkeypatch.setattr(SD3Transformer2DModel, "from_pretrained", classmethod(from_pretrained))
    config, cpu = TuningConfig(mixed_precision="bf16"), torch.device("cpu")
    model = read_transformer(
        BaseModel(studio.base_model), config, cpu, torch.bfloat16, cached_modulation=cached
    )
    assert isinstance(model, CachedModulationTransformer) == cached
    (words,) = asked
    assert words["device_map"] == {"": cpu}
    assert words["torch_dtype"] == torch.bfloat16
    assert words["low_cpu_mem_usage"] is True
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert {value.device for value in model.parameters()} == {cpu}
