"""Checkpoint as few blocks as the device's memory allows; their number does not change results."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch.utils.checkpoint import checkpoint

from mimicry.common.hardware import free_host_bytes
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.device import free_device_bytes, training_dtype
from mimicry.tuning.options.config import TuningConfig

# Bytes for each value of the stream through the blocks (batch x tokens x width), in 16-bit precision; counted
# by benchmarks/step_counts.py at 1024 x 1024, for Stable Diffusion 3.5 Large and Medium alike. Some of
# Medium's blocks have a second attention.
_KEPT_BLOCK = 27
_KEPT_DUAL_BLOCK = 39
# With dropout each LoRA layer keeps a mask, and what it lets through.
_KEPT_DROPOUT = 14
# In int8 a linear layer keeps its input for the backward pass, by bitsandbytes' code, where checkpointing
# does not find it: that of each of the four projections and of both layers of the feed-forward part; the
# second is four times as wide.
_KEPT_INT8_INPUTS = 2 * (4 + 1 + 4)
_BLOCK_INPUT = 2
_AROUND_BLOCKS = 65
# For each fp32 parameter of the adapter: its gradient, two moments, what the update holds meanwhile, and its
# 16-bit copy with the copy's gradient; with several processes the copy in which gradients are added up.
_TRAINED_PARAMETER = 20
_SHARED_PARAMETER = 4
# For workspaces of kernels and for memory that is free in pieces only. With twice as much, a run on an H100
# that was held to 15.3 GiB stayed 1.8 GiB below. What is missing all the same makes the trainer checkpoint
# more blocks.
_RESERVE = 1 << 29
# NCCL's buffers.
_SHARED_RESERVE = 1 << 30


def kept_per_value(block: torch.nn.Module, config: TuningConfig) -> int:
    """Return the bytes that a block keeps for its backward pass, for each value of the stream, in 16 bits."""
    kept = _KEPT_DUAL_BLOCK if block.use_dual_attention else _KEPT_BLOCK
    return kept + (_KEPT_DROPOUT if config.lora_dropout else 0)


def choose_checkpointed_blocks(
    free_bytes: int,
    *,
    stream_values: int,
    value_bytes: int,
    kept: Sequence[int],
    trained_parameters: int,
    keeps_inputs: bool = False,
    shared: bool = False,
) -> int:
    """Return how many blocks, the first ones, must be checkpointed to fit into `free_bytes`.

    Args:
        stream_values: batch x tokens, of image and prompt, x width of the transformer.
        value_bytes: bytes of a value in training precision.
        kept: for each block, see `kept_per_value`.
        keeps_inputs: the base is in int8.
        shared: several processes train together.
    """
    scale = stream_values * value_bytes // 2
    fixed = _RESERVE + shared * _SHARED_RESERVE
    fixed += (_TRAINED_PARAMETER + shared * _SHARED_PARAMETER) * trained_parameters
    fixed += (_AROUND_BLOCKS + (_BLOCK_INPUT + keeps_inputs * _KEPT_INT8_INPUTS) * len(kept)) * scale
    return next(
        (count for count in range(len(kept)) if fixed + sum(kept[count:]) * scale <= free_bytes), len(kept)
    )


def checkpoint_blocks(
    transformer: SD3Transformer2DModel,
    config: TuningConfig,
    device: torch.device,
    *,
    batch_size: int,
    token_count: int,
) -> int:
    """Checkpoint as many blocks as must be, and return how many; samples have `token_count` tokens."""
    blocks = list(transformer.transformer_blocks)
    if not config.gradient_checkpointing:
        return 0
    if config.checkpointed_blocks is not None:
        count = min(config.checkpointed_blocks, len(blocks))
    else:
        cuda = device.type == "cuda"
        count = choose_checkpointed_blocks(
            # Nothing helps when the system ends a process for want of memory.
            free_device_bytes(device) if cuda else free_host_bytes() // 2,
            stream_values=batch_size * token_count * transformer.inner_dim,
            value_bytes=training_dtype(config).itemsize,
            kept=[kept_per_value(block, config) for block in blocks],
            trained_parameters=sum(
                value.numel() for value in transformer.parameters() if value.requires_grad
            ),
            keeps_inputs=config.quantize_base == "int8",
            shared=config.num_processes > 1,
        )
    checkpoint_first(transformer, count)
    return count


def checkpoint_first(transformer: SD3Transformer2DModel, count: int) -> None:
    """Recompute the first `count` blocks in the backward pass, and no other."""
    # The first ones: when they are recomputed, what the others kept is free again.
    chosen = frozenset(id(block) for block in transformer.transformer_blocks[:count])

    def run(block: torch.nn.Module, *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False) if id(block) in chosen else block(*inputs)

    transformer.enable_gradient_checkpointing(gradient_checkpointing_func=run)


def image_tokens(model: BaseModel, resolution: int) -> int:
    """Return the tokens of a square image of `resolution` pixels."""
    vae, transformer = model.config_of("vae"), model.config_of("transformer")
    step: int = 2 ** (len(vae["block_out_channels"]) - 1) * int(transformer["patch_size"])
    return (resolution // step) ** 2
