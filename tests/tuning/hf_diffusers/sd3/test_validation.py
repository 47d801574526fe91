"""Validation images: of the right model at the right time, and of no influence on the training."""

import gc
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from mimicry.study.sample_files import read_settings
from mimicry.tuning.hf_diffusers.sd3 import validation
from mimicry.tuning.hf_diffusers.sd3.prompts import TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    SamplingSettings,
    initial_noise,
    latent_shape,
    sample_latents,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.latents import decode
from tests.tuning.hf_diffusers.sd3.parts import make_args, train
from tests.tuning.hf_diffusers.sd3.resuming import RUN, WEIGHTS, assert_same_end, metrics, stopped
from tests.tuning.hf_diffusers.studio import Studio, training_run

# An epoch is four images, a step two of them: images after steps 2, 4 and 6.
SHOW = ("--validation_prompt=a boat by sks", "--num_validation_images=2", "--validation_epochs=1")
STEPS = ("step-000002", "step-000004", "step-000006")
IMAGES = [f"{name}_{index}.png" for name in ("base", *STEPS) for index in range(2)]


def samples(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").iterdir())}


def base_latents(studio: Studio, prompt: str) -> Tensor:
    """Return what the base model makes of `prompt`, two images, without any part of the trainer's trainer."""
    model, cpu = BaseModel(folder=studio.base_model), torch.device("cpu")
    encoders = TextEncoders(model, None, cpu, torch.float32, warn=print)
    return torch.cat(
        [
            sample_latents(
                SD3Transformer2DModel.from_pretrained(model.folder / "transformer").eval(),
                model.folder / "scheduler",
                encoders.encode_all([prompt], 77)[0],
                encoders.encode_all([""], 77)[0],
                initial_noise(42, "validation_noise", index, "", latent_shape(model, 32)),
                SamplingSettings(resolution=32, steps=2),
            )
            for index in range(2)
        ]
    )


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an image take two steps: more only take time."""

    def quick(**words: Any) -> SamplingSettings:
        return SamplingSettings(**words | {"steps": 2})

    monkeypatch.setattr(validation, "SamplingSettings", quick)


@pytest.mark.parametrize(
    "flags",
    [
        ("--conditioning_table", "--mixed_precision=bf16", "--lora_dropout=0.3", "--gradient_checkpointing"),
        ("--cache_latents", "--train_batch_size=2", "--dataloader_num_workers=2"),
    ],
    ids=["table", "batches"],
)
@pytest.mark.usefixtures("few_steps")
def test_training_ends_with_the_same_bytes(flags: tuple[str, ...], studio: Studio, tmp_path: Path) -> None:
    train(studio, tmp_path / "without", *RUN, *flags)
    train(studio, tmp_path / "with", *RUN, *flags, *SHOW)

    assert (tmp_path / "with" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
    ours, theirs = (training_run(tmp_path / name) for name in ("with", "without"))
    for key in ("recipe_hash", "draws_sha256", "final_loss", "warnings", "numerics"):
        assert ours[key] == theirs[key], key
    assert not (tmp_path / "without" / "samples").exists()
    assert len(samples(tmp_path / "with")) > 2


@pytest.mark.usefixtures("few_steps")
def test_a_resumed_run_has_the_same_images_and_bytes(studio: Studio, tmp_path: Path) -> None:
    flags = (*SHOW, "--lora_dropout=0.3", "--conditioning_table")
    train(studio, tmp_path / "whole", *RUN, *flags)
    stopped(studio, tmp_path / "out", 2, *flags)
    assert set(samples(tmp_path / "out")) == {"base.latents", "step-000002.latents"}
    # As if the stop had come before the images of its step were drawn.
    (tmp_path / "out" / "samples" / "step-000002.latents").unlink()
    # The base is drawn anew, while a checkpoint is there whose adapter is not zero any more.
    (tmp_path / "out" / "samples" / "base.latents").unlink()

    train(studio, tmp_path / "out", *RUN, *flags)

    assert_same_end(tmp_path / "out", tmp_path / "whole")
    assert samples(tmp_path / "out") == samples(tmp_path / "whole")


@pytest.mark.parametrize("flags", [(), ("--conditioning_table",)], ids=["plain", "table"])
@pytest.mark.usefixtures("few_steps")
def test_the_base_draws_before_the_adapter_learns(
    flags: tuple[str, ...], studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Tensor] = {}

    def watched(vae: AutoencoderKL, latents_BCHW: Tensor) -> Sequence[Any]:
        drawn[f"{len(drawn)}"] = latents_BCHW
        return decode(vae, latents_BCHW)

    monkeypatch.setattr(validation, "decode", watched)
    train(studio, tmp_path, *RUN, *SHOW, "--learning_rate=0.05", *flags)

    assert sorted(samples(tmp_path)) == IMAGES
    base, *later = drawn.values()
    assert torch.equal(base, base_latents(studio, "a boat by sks"))
    for before, after in zip([base, *later[:-1]], later, strict=True):
        assert not torch.allclose(before, after, atol=1e-2)
    settings = read_settings(tmp_path / "samples" / "step-000004_1.png")
    assert settings is not None
    assert (settings["prompt"], settings["step"], settings["index"]) == ("a boat by sks", 4, 1)
    assert (settings["seed"], settings["steps"], settings["guidance"]) == (42, 2, 4.5)
    assert str(studio.base_model) not in json.dumps(settings)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("--max_train_steps=7 --validation_epochs=1", [4, 7]),
        ("--max_train_steps=8 --validation_epochs=1", [4, 8]),
        ("--max_train_steps=9 --validation_epochs=1 --repeats=2", [8, 9]),
        ("--max_train_steps=9 --validation_epochs=2 --gradient_accumulation_steps=3", [3, 6, 8, 9]),
        ("--max_train_steps=3 --validation_epochs=1 --gradient_accumulation_steps=9", [1, 2, 3]),
        ("--max_train_steps=3", [3]),
    ],
)
def test_images_are_due_when_epochs_end(flags: str, steps: list[int], studio: Studio, tmp_path: Path) -> None:
    config = make_args(studio, tmp_path, *flags.split()).config

    due = [step for step in range(config.step_count(4) + 1) if validation.is_due(config, 4, step)]
    assert due == steps


@pytest.mark.usefixtures("few_steps")
def test_base_images_are_drawn_once_for_all(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared"

    def drawn(name: str, images: Path, *flags: str) -> bool:
        capsys.readouterr()
        train(studio, tmp_path / name, *SHOW, f"--base_samples_dir={shared}", *flags, images=images)
        assert not list((tmp_path / name / "samples").glob("base*"))
        return "drew the base model's validation images" in capsys.readouterr().out

    assert drawn("first", studio.images)
    (folder,) = shared.iterdir()
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == ["0.png", "1.png"]
    assert not drawn("second", studio.mist)
    assert list(shared.iterdir()) == [folder]
    (folder / "1.png").unlink()
    assert drawn("mended", studio.mist)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert drawn("other", studio.images, "--seed=43")
    assert len(list(shared.iterdir())) == 2


def fail(*arguments: Any, **named: Any) -> Any:
    raise RuntimeError("no kernel in /home/somebody")


def nothing_finite(*arguments: Any) -> Tensor:
    return torch.full((1, 16, 8, 8), torch.nan)


@pytest.mark.parametrize(
    ("part", "fault", "name"),
    [
        ("sample_latents", fail, "RuntimeError"),
        ("sampling_modulation", fail, "RuntimeError"),
        ("sample_latents", nothing_finite, "ValueError"),
    ],
)
def test_a_fault_costs_the_images_alone(
    part: str, fault: Any, name: str, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, part, fault)
    train(studio, tmp_path, "--conditioning_table", *SHOW, "--validation_epochs=50")

    run = training_run(tmp_path)
    assert run["status"] == "complete"
    assert run["warnings"] == [
        f"no the base model's validation images: {name}",
        f"no validation images after step 2: {name}",
    ]
    assert not (tmp_path / "samples").exists()


@pytest.mark.usefixtures("few_steps")
def test_a_fault_in_decoding_keeps_the_latents(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validation, "load_vae", fail)
    train(studio, tmp_path, *SHOW)

    assert training_run(tmp_path)["status"] == "complete"
    assert "warning: no validation images: RuntimeError" in capsys.readouterr().out
    latents = load_file(tmp_path / "samples" / "step-000002.latents")["latents"]
    assert latents.shape == (2, 16, 8, 8)


@pytest.mark.usefixtures("few_steps")
def test_vae_and_transformer_are_never_in_memory_together(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    seen = []

    def watch(kind: Any, forbidden: Any) -> None:
        read = kind.from_pretrained.__func__

        def watched(cls: Any, *words: Any, **named: Any) -> Any:
            gc.collect()
            seen.append((cls.__name__, [type(model).__name__ for model in alive]))
            model = read(cls, *words, **named)
            alive.add(model)
            return model

        monkeypatch.setattr(kind, "from_pretrained", classmethod(watched))

    watch(AutoencoderKL, SD3Transformer2DModel)
    watch(SD3Transformer2DModel, AutoencoderKL)
    train(studio, tmp_path, *SHOW, "--cache_latents")

    assert seen == [("AutoencoderKL", []), ("SD3Transformer2DModel", []), ("AutoencoderKL", [])]


@pytest.mark.usefixtures("few_steps")
def test_with_a_cache_no_encoder_is_read(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt_cache: Path
) -> None:
    train(studio, tmp_path / "first", *SHOW)
    assert len(list(prompt_cache.iterdir())) == 3
    monkeypatch.setattr(TextEncoders, "encode_all", fail)

    train(studio, tmp_path / "second", *SHOW)

    assert samples(tmp_path / "second") == samples(tmp_path / "first")


@pytest.mark.usefixtures("few_steps")
def test_images_of_a_run_that_was_given_up_are_set_aside(studio: Studio, tmp_path: Path) -> None:
    stopped(studio, tmp_path, 3, *SHOW)
    train(studio, tmp_path, *RUN, *SHOW, "--resume_from_checkpoint=none")
    (aside,) = tmp_path.glob("set_aside/*-unfinished/samples")
    assert {path.name for path in aside.iterdir()} == {"base.latents", "step-000002.latents"}

    train(studio, tmp_path, *RUN)

    assert not (tmp_path / "samples").exists()
    (aside,) = tmp_path.glob("set_aside/*-replaced/samples")
    assert sorted(path.name for path in aside.iterdir()) == IMAGES
