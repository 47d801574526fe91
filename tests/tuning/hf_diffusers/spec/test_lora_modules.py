"""Layers, blocks and libraries, told by the files of the base model before anything is loaded."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel

from mimicry.tuning.hf_diffusers.sd3.lora import chosen_modules
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import module_problems
from mimicry.tuning.hf_diffusers.spec.preflight import config_problems, config_warnings
from mimicry.tuning.options.config import TuningConfig


@pytest.fixture
def model(demo_dir: Path) -> BaseModel:
    return BaseModel(folder=demo_dir / "tiny_sd3")


@pytest.fixture
def config(demo_dir: Path) -> TuningConfig:
    return TuningConfig(pretrained_model_name_or_path=str(demo_dir / "tiny_sd3"), resolution=64)


@pytest.mark.parametrize(
    ("layers", "blocks", "words"),
    [
        ("attn.to_q,ff.net.2", "0,1", []),
        ("proj_out", None, []),
        ("foo", None, ["--lora-layers: 'foo' is not a layer"]),
        (None, "99", ["--lora-blocks: '99' is not a block of this model; it takes numbers from 0 to 2"]),
        ("attn.to_p,pos_embed.proj", None, ["did you mean 'attn.to_", "'pos_embed.proj' is not a layer"]),
        ("foo,proj_out", "99", ["'99' is not a block", "'foo' is not a layer; "]),
        ("proj_out", "1", ["'proj_out' is not a layer in blocks 1"]),
    ],
)
def test_what_the_files_tell_is_what_the_model_says(
    layers: str | None, blocks: str | None, words: list[str], model: BaseModel, config: TuningConfig
) -> None:
    asked = replace(config, lora_layers=layers, lora_blocks=blocks)

    problems = module_problems(model, asked)

    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem
    if not words:
        transformer = SD3Transformer2DModel.from_pretrained(model.folder / "transformer")
        assert chosen_modules(transformer, asked)


def test_a_model_whose_files_cannot_be_read_is_left_to_the_trainer(tmp_path: Path) -> None:
    assert module_problems(BaseModel(folder=tmp_path), TuningConfig(lora_layers="foo")) == []


def test_a_plan_refuses_what_the_training_would(
    config: TuningConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = replace(config, lora_layers="foo", optimizer="prodigy", use_8bit_adam=True, quantize_base="nf4")

    problems = config_problems(asked, network=False)

    for word in (
        "--lora-layers: 'foo'",
        "--use-8bit-adam goes with --optimizer AdamW only",
        "--optimizer prodigy needs prodigyopt, which is not installed; type pip install prodigyopt",
        "--use-8bit-adam needs bitsandbytes",
        "--quantize-base nf4 needs bitsandbytes",
    ):
        assert sum(word in problem for problem in problems) == 1
    assert config_problems(config, network=False) == []


def test_processes_without_gpus_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (warning,) = config_warnings(TuningConfig(num_processes=4))
    assert warning.startswith("--num-processes 4 without a GPU")
    assert config_warnings(TuningConfig()) == []
