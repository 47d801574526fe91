"""A tiny but complete Stable Diffusion 3 pipeline in the layout of the real ones: its sizes and its files.

Every part is there and of the right kind, only small: what runs on it runs on Stable Diffusion 3.5. How it is
trained is in `mimicry.demo.training`.

Nothing here imports torch before a function is called.
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

from mimicry.demo.tokenizer_files import CLIP_MAX_LENGTH, Files, clip_files, t5_files


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Every size of the model. Widths that meet differ, so that a mix-up of two shows as an error."""

    transformer_layers: int = 5
    heads: int = 4
    head_width: int = 32
    patch_pixels: int = 2  # of the latent image
    native_pixels: int = 64
    largest_pixels: int = 192

    # Four times smaller on a side, where the real VAE makes it eight: nothing may count on the eight.
    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_layers: int = 1
    # A norm over few channels takes the colour of the whole picture away.
    vae_norm_groups: int = 2
    latent_channels: int = 16
    clip_widths: tuple[int, int] = (24, 40)
    clip_heads: tuple[int, int] = (2, 4)
    clip_layers: int = 2
    t5_width: int = 80
    t5_heads: int = 4
    t5_head_width: int = 16
    t5_layers: int = 2

    scheduler_shift: float = 1.2

    @property
    def vae_downscale(self) -> int:
        """How many pixels of the picture, on a side, make one of the latent image."""
        return 1 << (len(self.vae_channels) - 1)


GEOMETRY = Geometry()

# What `mimicry.demo.training` made, part of this package.
_MADE = Path(__file__).parent / "weights"
WEIGHTS, UPSCALER = _MADE / "tiny_sd3", _MADE / "upscaler.safetensors"


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


def new_models(seed: int) -> dict[str, Any]:
    """Return the models of the pipeline by component, untrained, in fp32."""
    import torch

    torch.manual_seed(seed)
    models = {
        "transformer": _transformer(),
        "vae": _vae(),
        "text_encoder": _clip(clip_files(), 0),
        "text_encoder_2": _clip(clip_files(pad_token="!"), 1),
        "text_encoder_3": _t5(t5_files()),
    }
    _open_gates(models["transformer"])
    for component in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        _spread_words(models[component])
    return models


def write_pipeline(models: dict[str, Any], folder: Path) -> None:
    """Write the pipeline of `models` into `folder`, which must not exist."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    with tempfile.TemporaryDirectory() as name, _no_progress_bars():
        draft = Path(name, "draft")
        FlowMatchEulerDiscreteScheduler(shift=GEOMETRY.scheduler_shift).save_pretrained(draft / "scheduler")
        for component, model in models.items():
            model.save_pretrained(draft / component)
        write_tokenizers(draft)
        index: dict[str, object] = {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": version("diffusers"),
        }
        _write_texts(draft, {"model_index.json": json.dumps(index | _COMPONENTS, indent=2) + "\n"})
        # The libraries keep weights from all but the owner. A copy of the contents has ordinary permissions.
        shutil.copytree(draft, folder, copy_function=shutil.copyfile)


def write_tokenizers(folder: Path) -> None:
    """Write the three tokenizers into their subfolders of the pipeline in `folder`."""
    _write_texts(folder / "tokenizer", clip_files())
    _write_texts(folder / "tokenizer_2", clip_files(pad_token="!"))
    _write_texts(folder / "tokenizer_3", t5_files())


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
        layers_per_block=GEOMETRY.vae_layers,
        mid_block_add_attention=False,
        latent_channels=GEOMETRY.latent_channels,
        norm_num_groups=GEOMETRY.vae_norm_groups,
        sample_size=GEOMETRY.native_pixels,
        shift_factor=0.0,  # set from the latents once it is trained
        scaling_factor=1.0,
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


def _open_gates(transformer: Any) -> None:
    """Set what scales and gates each block by time and prompt to zero: training starts from a still network."""
    import torch

    for name, parameter in transformer.named_parameters():
        if ".norm1" in name or name.startswith(("norm_out", "proj_out")):
            torch.nn.init.zeros_(parameter)


def _spread_words(encoder: Any) -> None:
    """Draw word embeddings so large that two words are far apart after all layers, from the first step on."""
    import torch

    for name, parameter in encoder.named_parameters():
        if name.endswith(("token_embedding.weight", "shared.weight")):
            torch.nn.init.normal_(parameter)


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
