"""Lets the CLIP encoders of a small model read as many tokens as those of Stable Diffusion 3."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CLIP_TOKENS = 77
_POSITIONS = "text_model.embeddings.position_embedding.weight"
# Each encoder with its tokenizer.
_CLIPS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def with_wide_prompts(model: Path, copy: Path) -> Path:
    """Return `model` when its CLIPs read 77 tokens, else a copy of it, made in `copy`, whose CLIPs do.

    Further positions have the embeddings of the first ones again.

    Raises:
        SystemExit: the model is not a pipeline with two CLIP encoders in safetensors files.
    """
    try:
        short = [name for name in _CLIPS if _config(model / name)["max_position_embeddings"] < CLIP_TOKENS]
        if not short:
            return model
        shutil.copytree(model, copy)
        for name in short:
            _widen(copy / name, copy / _CLIPS[name])
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"{model} is not a Stable Diffusion 3 pipeline in the diffusers layout: {error!r}"
        ) from error
    return copy


def _widen(encoder: Path, tokenizer: Path) -> None:
    weights = load_file(encoder / "model.safetensors")
    positions_LD = weights[_POSITIONS]
    weights[_POSITIONS] = positions_LD[torch.arange(CLIP_TOKENS) % len(positions_LD)].contiguous()
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    for file, name in ((encoder / "config.json", "max_position_embeddings"),
                       (tokenizer / "tokenizer_config.json", "model_max_length")):  # fmt: skip
        content = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(content | {name: CLIP_TOKENS}, indent=2), encoding="utf-8")


def _config(folder: Path) -> dict[str, int]:
    content: dict[str, int] = json.loads((folder / "config.json").read_text("utf-8"))
    return content
