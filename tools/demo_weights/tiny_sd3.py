"""A tiny but complete Stable Diffusion 3 pipeline with the file layout of the real ones: sizes and files.

All components are of the right class, only small, so what runs on it runs on Stable Diffusion 3.5.

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

from tools.demo_weights.tokenizer_files import Files, clip_files, t5_files


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """All sizes of the model. Widths that could be confused differ, so that mixing them up is an error."""

    transformer_layers: int = 5
    heads: int = 4
    head_width: int = 32
    patch_pixels: int = 2  # of the latent image
    native_pixels: int = 64
    largest_pixels: int = 192

    # This VAE scales down by 4, the real one by 8, so that code which assumes 8 fails.
    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_layers: int = 1
    # With more groups, a norm over few channels would remove the colour of the whole picture.
    vae_norm_groups: int = 2
    latent_channels: int = 16

    clip_widths: tuple[int, int] = (24, 40)
    clip_heads: tuple[int, int] = (2, 4)
    clip_layers: int = 2
    # The real 77 would be mostly padding, which takes as long as words do.
    clip_length: int = 32
    t5_width: int = 80
    t5_heads: int = 4
    t5_head_width: int = 16
    t5_layers: int = 2

    # The real 3 is for pictures of a megapixel; small pictures lose their strokes at lower noise levels.
    scheduler_shift: float = 1.2

    @property
    def vae_downscale(self) -> int:
        """The width of a latent pixel in pixels of the picture."""
        return 1 << (len(self.vae_channels) - 1)

    def tokenizers(self) -> dict[str, Files]:
        """Return the texts of the tokenizers' files by component and name."""
        return {
            "tokenizer": clip_files(self.clip_length),
            "tokenizer_2": clip_files(self.clip_length, pad_token="!"),
            "tokenizer_3": t5_files(),
        }


GEOMETRY = Geometry()

# The class that reads each subfolder, by its library, as in model_index.json.
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


def new_models(geometry: Geometry = GEOMETRY) -> dict[str, Any]:
    """Return the models of the pipeline by component, untrained, in fp32; torch's seed makes the weights."""
    tokenizers = geometry.tokenizers()
    return {
        "transformer": _transformer(geometry),
        "vae": _vae(geometry),
        "text_encoder": _clip(geometry, tokenizers["tokenizer"], 0),
        "text_encoder_2": _clip(geometry, tokenizers["tokenizer_2"], 1),
        "text_encoder_3": _t5(geometry, tokenizers["tokenizer_3"]),
    }


def write_pipeline(models: dict[str, Any], folder: Path, geometry: Geometry = GEOMETRY) -> None:
    """Write the pipeline of `models` into `folder`, which must not exist."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    with tempfile.TemporaryDirectory() as name, _no_progress_bars():
        draft = Path(name, "draft")
        FlowMatchEulerDiscreteScheduler(shift=geometry.scheduler_shift).save_pretrained(draft / "scheduler")
        for component, model in models.items():
            model.save_pretrained(draft / component)
        write_tokenizers(draft, geometry)
        index: dict[str, object] = {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": version("diffusers"),
        }
        _write_texts(draft, {"model_index.json": json.dumps(index | _COMPONENTS, indent=2) + "\n"})
        # The libraries make weights readable by their owner only. A copy has ordinary permissions.
        shutil.copytree(draft, folder, copy_function=shutil.copyfile)


def write_tokenizers(folder: Path, geometry: Geometry = GEOMETRY) -> None:
    """Write the three tokenizers into their subfolders of the pipeline in `folder`."""
    for component, files in geometry.tokenizers().items():
        _write_texts(folder / component, files)


def _transformer(geometry: Geometry) -> Any:
    from diffusers import SD3Transformer2DModel

    width = geometry.heads * geometry.head_width
    latent_patch = geometry.vae_downscale * geometry.patch_pixels
    return SD3Transformer2DModel(
        sample_size=geometry.native_pixels // geometry.vae_downscale,
        patch_size=geometry.patch_pixels,
        in_channels=geometry.latent_channels,
        out_channels=geometry.latent_channels,
        num_layers=geometry.transformer_layers,
        num_attention_heads=geometry.heads,
        attention_head_dim=geometry.head_width,
        caption_projection_dim=width,
        joint_attention_dim=geometry.t5_width,
        pooled_projection_dim=sum(geometry.clip_widths),
        pos_embed_max_size=geometry.largest_pixels // latent_patch,
        qk_norm="rms_norm",
    )


def _vae(geometry: Geometry) -> Any:
    from diffusers import AutoencoderKL

    levels = len(geometry.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=geometry.vae_channels,
        layers_per_block=geometry.vae_layers,
        mid_block_add_attention=False,
        latent_channels=geometry.latent_channels,
        norm_num_groups=geometry.vae_norm_groups,
        sample_size=geometry.native_pixels,
        shift_factor=0.0,  # set from the latents once it is trained
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(geometry: Geometry, files: Files, which: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    width = geometry.clip_widths[which]
    special = json.loads(files["special_tokens_map.json"])
    vocabulary = json.loads(files["vocab.json"])
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=geometry.clip_layers,
        num_attention_heads=geometry.clip_heads[which],
        max_position_embeddings=geometry.clip_length,
        bos_token_id=vocabulary[special["bos_token"]],
        eos_token_id=vocabulary[special["eos_token"]],
        pad_token_id=vocabulary[special["pad_token"]],
    )
    return CLIPTextModelWithProjection(config)


def _t5(geometry: Geometry, files: Files) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(json.loads(files["tokenizer.json"])["model"]["vocab"]),
        d_model=geometry.t5_width,
        d_kv=geometry.t5_head_width,
        d_ff=2 * geometry.t5_width,
        num_layers=geometry.t5_layers,
        num_heads=geometry.t5_heads,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


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
