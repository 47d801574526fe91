"""The tiny model is a complete Stable Diffusion 3 pipeline, small, and what the code says."""

import json
import re
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mimicry.demo.variants import TINY_SD3
from tools.demo_weights.tiny_sd3 import GEOMETRY, new_models, write_tokenizers

PROMPT = "a painting in the style of sks"


@pytest.fixture(scope="module")
def model(true_demo: Path) -> Path:
    return true_demo / "tiny_sd3"


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Any:
    from diffusers import StableDiffusion3Pipeline

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the network was asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        loaded = StableDiffusion3Pipeline.from_pretrained(model).to(torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_is_small_and_its_files_have_ordinary_permissions(model: Path, tmp_path: Path) -> None:
    files = [path for path in model.rglob("*") if path.is_file()]
    (tmp_path / "ordinary").touch()
    ordinary = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)

    assert sum(path.stat().st_size for path in files) < 10e6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {ordinary}


def test_no_path_of_the_machine_is_in_its_files(model: Path) -> None:
    for path in model.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r':\s*"/|_name_or_path', text), path
        assert tempfile.gettempdir() not in text, path


def test_every_component_loads_alone(model: Path) -> None:
    import diffusers
    import transformers

    index = json.loads((model / "model_index.json").read_text())
    components = {name: entry for name, entry in index.items() if not name.startswith("_")}

    assert set(components) == {path.name for path in model.iterdir() if path.is_dir()}
    for name, (library, kind) in components.items():
        reader = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
        assert reader.from_pretrained(model, subfolder=name) is not None


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 128), (192, 192)])
def test_it_samples(pipeline: Any, width: int, height: int) -> None:
    image = _sample(pipeline, PROMPT, seed=0, width=width, height=height)

    assert image.size == (width, height)
    # Neither grey nor burnt out: something is there for training to change.
    assert 20 < np.asarray(image).std() < 110


def test_samples_depend_on_seed_and_prompt(pipeline: Any) -> None:
    sample = _sample(pipeline, PROMPT, seed=0)

    assert sample.tobytes() == _sample(pipeline, PROMPT, seed=0).tobytes()
    assert sample.tobytes() != _sample(pipeline, PROMPT, seed=1).tobytes()
    assert sample.tobytes() != _sample(pipeline, "a dog", seed=0).tobytes()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PROMPT, "a painting in the style of"),
        (PROMPT, "a painting of a house in the style of sks"),
        ("a painting of a house", "a painting of a boat"),
        (PROMPT, ""),
    ],
)
def test_prompts_have_different_embeddings(pipeline: Any, one: str, other: str) -> None:
    first, second = _embeddings(pipeline, one), _embeddings(pipeline, other)

    # Most of the tokens are padding, and alike.
    assert (first[0] - second[0]).norm() > 0.1 * first[0].norm()
    assert (first[1] - second[1]).norm() > 0.01 * first[1].norm()


def test_configs_agree_with_each_other(pipeline: Any) -> None:
    transformer, vae = pipeline.transformer.config, pipeline.vae.config
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    widths = [encoder.config.hidden_size for encoder in encoders]

    assert transformer.in_channels == transformer.out_channels == vae.latent_channels == 16
    assert transformer.joint_attention_dim == pipeline.text_encoder_3.config.d_model >= sum(widths)
    assert transformer.pooled_projection_dim == sum(encoder.config.projection_dim for encoder in encoders)
    assert transformer.caption_projection_dim == (
        transformer.num_attention_heads * transformer.attention_head_dim
    )
    assert transformer.qk_norm == "rms_norm"
    assert pipeline.scheduler.config.shift == GEOMETRY.scheduler_shift
    assert (vae.use_quant_conv, vae.use_post_quant_conv) == (False, False)
    assert pipeline.vae_scale_factor == 4
    for encoder, tokenizer in zip(encoders, (pipeline.tokenizer, pipeline.tokenizer_2), strict=True):
        config = encoder.config
        assert config.vocab_size == len(tokenizer)
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.max_position_embeddings == tokenizer.model_max_length == pipeline.tokenizer_max_length


def test_latents_of_paintings_have_unit_scale_and_a_sure_posterior(pipeline: Any, true_demo: Path) -> None:
    paths = sorted((true_demo / "style_mimicry" / "original_art").rglob("0[1-5]_*"))
    pixels = np.stack([_pixels(path) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(images).latent_dist
    config = pipeline.vae.config
    latents = (posterior.mean - config.shift_factor) * config.scaling_factor

    assert latents.mean().abs() < 0.2
    assert 0.7 < latents.std() < 1.4
    assert 0 < posterior.std.max() < 0.5 * posterior.mean.std()


def test_weights_are_bf16_and_finite_and_fit_into_eight_megabytes() -> None:
    files = [path for path in TINY_SD3.parent.rglob("*") if path.is_file()]
    weights = {path: load_file(path) for path in files if path.suffix == ".safetensors"}

    assert len(weights) == 6
    assert {values.dtype for tensors in weights.values() for values in tensors.values()} == {torch.bfloat16}
    assert all(values.isfinite().all() for tensors in weights.values() for values in tensors.values())
    assert sum(path.stat().st_size for path in files) <= 8e6


def test_the_committed_tokenizers_are_those_that_the_code_writes(tmp_path: Path) -> None:
    write_tokenizers(tmp_path)

    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (TINY_SD3 / path.relative_to(tmp_path)).read_bytes()


def test_the_geometry_is_that_of_the_committed_weights() -> None:
    for component, model in new_models().items():
        (path,) = (TINY_SD3 / component).glob("*.safetensors")
        shapes = {name: tuple(values.shape) for name, values in load_file(path).items()}
        expected = {name: tuple(values.shape) for name, values in model.state_dict().items()}
        # A T5 encoder keeps its word embeddings under two names, and saves one.
        assert shapes.items() <= expected.items()
        assert set(shapes.values()) == set(expected.values())


def _sample(pipeline: Any, prompt: str, *, seed: int, width: int = 64, height: int = 64) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    output = pipeline(prompt, num_inference_steps=2, width=width, height=height, generator=generator)
    image: Image.Image = output.images[0]
    return image


def _embeddings(pipeline: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
    return tokens, pooled


def _pixels(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB").resize((64, 64)), dtype=np.uint8)
