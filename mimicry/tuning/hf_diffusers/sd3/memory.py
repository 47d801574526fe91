"""As little checkpointing as the device's memory allows; the number of blocks changes no result."""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch.utils.checkpoint import checkpoint

from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.device_memory import free_device_bytes
from mimicry.tuning.hf_diffusers.training.precision import training_dtype
from mimicry.tuning.options.config import TuningConfig

# Bytes for each value of the stream through the blocks (batch x tokens x width), in 16-bit precision. Derived
# from counts on fake tensors for Stable Diffusion 3.5 Large at 1024 x 1024 (4250 tokens, width 2432): 1.36
# GiB with all 38 blocks checkpointed, 16.4 with none, and 12.6 with none where blocks are compiled.
_KEPT_BLOCK = 41
_KEPT_COMPILED_BLOCK = 31
# In int8 a linear layer keeps its input for the backward pass, by bitsandbytes' code: that of each of the
# four projections and of both layers of the feed-forward part; the second is four times as wide.
_KEPT_INT8_INPUTS = 2 * (4 + 1 + 4)
_BLOCK_INPUT = 2
_AROUND_BLOCKS = 65
# For each fp32 parameter of the adapter: its gradient, two moments, and what the update holds meanwhile;
# with several processes the copy in which gradients are added up.
_TRAINED_PARAMETER = 16
_SHARED_PARAMETER = 4
# For workspaces of kernels and for memory that is free in pieces only.
_RESERVE = 1 << 30


def choose_checkpointed_blocks(
    free_bytes: int,
    *,
    stream_values: int,
    value_bytes: int,
    block_count: int,
    trained_parameters: int,
    compiled: bool,
    keeps_inputs: bool = False,
    shared: bool = False,
) -> int:
    """Return how many of `block_count` blocks must be checkpointed to fit into `free_bytes`.

    They must hold a reserve, the adapter's training state, what full checkpointing keeps, and for each block
    that is not checkpointed what it keeps for its backward pass.

    Args:
        stream_values: batch x tokens, of image and prompt, x width of the transformer.
        value_bytes: bytes of a value in training precision.
        keeps_inputs: the base is in int8.
        shared: several processes train together.
    """
    scale = stream_values * value_bytes // 2
    fixed = _RESERVE + (_TRAINED_PARAMETER + shared * _SHARED_PARAMETER) * trained_parameters
    fixed += (_AROUND_BLOCKS + _BLOCK_INPUT * block_count) * scale
    kept = (_KEPT_COMPILED_BLOCK if compiled else _KEPT_BLOCK) + keeps_inputs * _KEPT_INT8_INPUTS
    a_block = kept * scale
    return block_count - max(0, min(block_count, (free_bytes - fixed) // a_block))


def checkpoint_blocks(
    transformer: SD3Transformer2DModel,
    config: TuningConfig,
    device: torch.device,
    *,
    batch_size: int,
    token_count: int,
) -> int:
    """Let the transformer recompute some of its blocks in the backward pass; return how many.

    Args:
        token_count: tokens of a sample, of image and prompt.
    """
    blocks = list(transformer.transformer_blocks)
    if not config.gradient_checkpointing:
        return 0
    if config.checkpointed_blocks is not None:
        count = min(config.checkpointed_blocks, len(blocks))
    elif device.type != "cuda":
        count = len(blocks)
    else:
        count = choose_checkpointed_blocks(
            free_device_bytes(device),
            stream_values=batch_size * token_count * transformer.inner_dim,
            value_bytes=training_dtype(config).itemsize,
            block_count=len(blocks),
            trained_parameters=sum(
                value.numel() for value in transformer.parameters() if value.requires_grad
            ),
            compiled=config.compile_blocks,
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
