"""Write a Stable Diffusion 3 pipeline of any size with random weights, without holding all of it in memory.

    .venv/bin/python -m benchmarks.random_pipeline FOLDER [--sizes large]

For measuring memory and speed, which depend on sizes only. The pipeline draws noise. The random numbers are
drawn on the GPU where there is one.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from benchmarks.pipeline_sizes import SIZES, Sizes
from tools.demo_weights.tokenizer_files import clip_files, t5_files

_SHARD_BYTES = 1 << 30
_CLIP_LENGTH = 77
_VOCABULARIES = {"clip": 49_408, "t5": 32_128}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    cuda = torch.cuda.is_available()
    parser.add_argument("--sizes", choices=SIZES, default="large" if cuda else "small")
    options = parser.parse_args()
    begin = time.perf_counter()
    # It gets its name when it is whole.
    partial = options.folder.with_name(f"{options.folder.name}.partial")
    written = write_pipeline(partial, SIZES[options.sizes], torch.device("cuda" if cuda else "cpu"))
    partial.rename(options.folder)
    size, seconds = sum(written.values()) / 1e9, time.perf_counter() - begin
    print(f"pipeline {options.sizes}: {size:.1f} GB written in {seconds:.0f} s, {size / seconds:.2f} GB/s")


def write_pipeline(folder: Path, sizes: Sizes, device: torch.device) -> dict[str, int]:
    """Write the pipeline in bf16 into `folder`, which must not exist; return the bytes of each model.

    Args:
        device: where the random numbers are generated.
    """
    folder.mkdir(parents=True)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for name, files in (
        ("tokenizer", clip_files(_CLIP_LENGTH)),
        ("tokenizer_2", clip_files(_CLIP_LENGTH, pad_token="!")),
        ("tokenizer_3", t5_files()),
    ):
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text, encoding="utf-8")
    written = {}
    for name, model in _models(sizes):
        is_ours = isinstance(model, SD3Transformer2DModel | AutoencoderKL)
        stem = "diffusion_pytorch_model" if is_ours else "model"
        written[name] = _write_weights(folder / name, stem, _tensors(model), device)
        if is_ours:
            model.save_config(folder / name)
        else:
            model.config.save_pretrained(folder / name)
    return written


def _models(sizes: Sizes) -> Iterator[tuple[str, Any]]:
    """Yield the models by name, on the meta device."""
    with torch.device("meta"):
        yield "text_encoder", _clip(*sizes.clips[0], activation="quick_gelu")
        yield "text_encoder_2", _clip(*sizes.clips[1], activation="gelu")
        yield (
            "text_encoder_3",
            T5EncoderModel(
                T5Config(
                    vocab_size=_VOCABULARIES["t5"],
                    d_model=sizes.t5_width,
                    d_kv=64,
                    d_ff=sizes.t5_width * 5 // 2,
                    num_layers=sizes.t5_layers,
                    num_heads=sizes.t5_heads,
                    feed_forward_proj="gated-gelu",
                    is_encoder_decoder=False,
                    use_cache=False,
                )
            ),
        )
        yield "vae", _vae(sizes)
        yield "transformer", _transformer(sizes)


def _clip(width: int, layers: int, heads: int, activation: str) -> Any:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=_VOCABULARIES["clip"],
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=activation,
        )
    )


def _vae(sizes: Sizes) -> AutoencoderKL:
    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=32,
        sample_size=sizes.resolution,
        shift_factor=0.0609,
        scaling_factor=1.5305,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _transformer(sizes: Sizes) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        attention_head_dim=sizes.head_width,
        joint_attention_dim=sizes.t5_width,
        caption_projection_dim=sizes.heads * sizes.head_width,
        pooled_projection_dim=sum(width for width, _, _ in sizes.clips),
        pos_embed_max_size=192,
        qk_norm="rms_norm",
    )


def _tensors(model: Any) -> dict[str, torch.Size]:
    """Return the shape of each tensor in the weight files of `model`."""
    # T5 has its embedding twice, under two names.
    return {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }


def _write_weights(folder: Path, stem: str, shapes: Mapping[str, torch.Size], device: torch.device) -> int:
    folder.mkdir()
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * shape.numel()
        if shards[-1] and held + size > _SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    places = {}
    for number, names in enumerate(shards, start=1):
        file = (
            f"{stem}.safetensors"
            if len(shards) == 1
            else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        save_file(
            {name: draw_weights(name, shapes[name], device).cpu() for name in names},
            folder / file,
            {"format": "pt"},
        )
        places.update(dict.fromkeys(names, file))
    total = 2 * sum(shape.numel() for shape in shapes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return total


def draw_weights(name: str, shape: torch.Size, device: torch.device) -> Tensor:
    """Return weights that keep activations near unit scale."""
    if len(shape) == 1:
        value = 1.0 if name.endswith("weight") else 0.0
        return torch.full(shape, value, dtype=torch.bfloat16, device=device)
    spread = 0.02 if "embed" in name else shape[1:].numel() ** -0.5
    return torch.randn(shape, dtype=torch.bfloat16, device=device) * spread


if __name__ == "__main__":
    main()
