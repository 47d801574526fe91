"""A tiny but complete Stable Diffusion 3 pipeline in the layout of the real ones, with random weights.

Every part is there and of the right kind, only small: what runs on it runs on Stable Diffusion 3.5. It has
learnt nothing, its VAE included: its samples are noise, and its latents are no code for a picture.

Nothing here imports torch before `write_tiny_sd3` is called.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mimicry.demo.chance import generator
from mimicry.demo.tokenizer_files import CLIP_MAX_LENGTH, Files, clip_files, t5_files


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Every size of the model. Widths that meet differ, so that a mix-up of two shows as an error."""

    transformer_layers: int = 3
    heads: int = 4
    head_width: int = 24
    patch_pixels: int = 2  # of the latent image
    native_pixels: int = 64
    largest_pixels: int = 384

    # Four times smaller on a side, where the real VAE makes it eight: nothing may count on the eight.
    vae_channels: tuple[int, ...] = (16, 24, 32)
    vae_norm_groups: int = 8
    latent_channels: int = 16
    # Mean and reciprocal standard deviation of the latents of drawn paintings, seed 7.
    shift_factor: float = 0.09
    scaling_factor: float = 1.69

    clip_widths: tuple[int, int] = (24, 40)
    clip_heads: tuple[int, int] = (2, 4)
    clip_layers: int = 2
    t5_width: int = 80
    t5_heads: int = 4
    t5_head_width: int = 16
    t5_layers: int = 2

    scheduler_shift: float = 3.0

    @property
    def vae_downscale(self) -> int:
        """How many pixels of the picture, on a side, make one of the latent image."""
        return 1 << (len(self.vae_channels) - 1)


GEOMETRY = Geometry()


# Which class of which library reads each subfolder: what model_index.json says, and all that it says.
_COMPONENTS = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "text_encoder_3": ("transformers", "T5EncoderModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "tokenizer_3": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def write_tiny_sd3(folder: Path, seed: int) -> None:
    """Write the pipeline into `folder`, which must not exist: same seed and libraries, same bytes."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=GEOMETRY.scheduler_shift)
    tokenizers = {
        "tokenizer": clip_files(),
        "tokenizer_2": clip_files(pad_token="!"),
        "tokenizer_3": t5_files(),
    }
    models = {
        "transformer": _transformer(),
        "vae": _vae(),
        "text_encoder": _clip(tokenizers["tokenizer"], 0),
        "text_encoder_2": _clip(tokenizers["tokenizer_2"], 1),
        "text_encoder_3": _t5(tokenizers["tokenizer_3"]),
    }
    with tempfile.TemporaryDirectory() as name, _no_progress_bars():
        draft = Path(name, "draft")
        scheduler.save_pretrained(draft / "scheduler")
        for component, model in models.items():
            _draw_weights(model, component, seed)
            model.save_pretrained(draft / component)
        for component, files in tokenizers.items():
            _write_texts(draft / component, files)
        index: dict[str, object] = {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": version("diffusers"),
        }
        _write_texts(draft, {"model_index.json": json.dumps(index | _COMPONENTS, indent=2) + "\n"})
        # The libraries keep weights from all but the owner. A copy of the contents has ordinary permissions.
        shutil.copytree(draft, folder, copy_function=shutil.copyfile)


def _transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    width = GEOMETRY.heads * GEOMETRY.head_width
    latent_patch = GEOMETRY.vae_downscale * GEOMETRY.patch_pixels
    return SD3Transformer2DModel(
        sample_size=GEOMETRY.native_pixels // GEOMETRY.vae_downscale,
        patch_size=GEOMETRY.patch_pixels,
        in_channels=GEOMETRY.latent_channels,
        out_channels=GEOMETRY.latent_channels,
        num_layers=GEOMETRY.transformer_layers,
        num_attention_heads=GEOMETRY.heads,
        attention_head_dim=GEOMETRY.head_width,
        caption_projection_dim=width,
        joint_attention_dim=GEOMETRY.t5_width,
        pooled_projection_dim=sum(GEOMETRY.clip_widths),
        pos_embed_max_size=GEOMETRY.largest_pixels // latent_patch,
        qk_norm="rms_norm",
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    levels = len(GEOMETRY.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=GEOMETRY.vae_channels,
        latent_channels=GEOMETRY.latent_channels,
        norm_num_groups=GEOMETRY.vae_norm_groups,
        sample_size=GEOMETRY.native_pixels,
        shift_factor=GEOMETRY.shift_factor,
        scaling_factor=GEOMETRY.scaling_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(files: Files, which: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width = GEOMETRY.clip_widths[which]
    special = json.loads(files["special_tokens_map.json"])
    vocabulary = json.loads(files["vocab.json"])
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=GEOMETRY.clip_layers,
        num_attention_heads=GEOMETRY.clip_heads[which],
        max_position_embeddings=CLIP_MAX_LENGTH,
        bos_token_id=vocabulary[special["bos_token"]],
        eos_token_id=vocabulary[special["eos_token"]],
        pad_token_id=vocabulary[special["pad_token"]],
    )
    return CLIPTextModelWithProjection(config)


def _t5(files: Files) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(json.loads(files["tokenizer.json"])["model"]["vocab"]),
        d_model=GEOMETRY.t5_width,
        d_kv=GEOMETRY.t5_head_width,
        d_ff=2 * GEOMETRY.t5_width,
        num_layers=GEOMETRY.t5_layers,
        num_heads=GEOMETRY.t5_heads,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def _draw_weights(model: Any, component: str, seed: int) -> None:
    """Set every parameter of `model` to numbers drawn for its name; torch's own differ from CPU to CPU."""
    import torch

    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            rng = generator(seed, "weights", component, module_name, name)
            centre, spread = _centre_and_spread(module_name, name, tuple(parameter.shape))
            if isinstance(module, torch.nn.Embedding):
                spread = 1.0
            values = centre + spread * rng.standard_normal(tuple(parameter.shape))
            if (component, module_name) == ("vae", "encoder.conv_out"):
                values = _confident_posterior(values, name)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def _centre_and_spread(module_name: str, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation that keep activations near unit scale from layer to layer."""
    if name == "bias":
        return 0.0, 0.02
    if len(shape) == 1:  # the gain of a norm
        return 1.0, 0.1
    spread = float(np.prod(shape[1:])) ** -0.5
    if module_name.endswith("SelfAttention.q"):
        # T5 does not divide its attention scores by the root of the head's width.
        return 0.0, spread / GEOMETRY.t5_head_width**0.5
    return 0.0, spread


def _confident_posterior(values: "np.ndarray[Any, Any]", name: str) -> "np.ndarray[Any, Any]":
    """Return the VAE's last encoder weights with the half that says log variance made small and near -4.

    A trained VAE is nearly sure of its latents; an unsure one would drown the paintings in noise.
    """
    values = values.copy()
    values[len(values) // 2 :] *= 0.1
    if name == "bias":
        values[len(values) // 2 :] -= 4.0
    return values


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_texts(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
