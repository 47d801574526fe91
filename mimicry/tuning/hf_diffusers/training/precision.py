"""Precisions by the names that options give them."""

import torch

from mimicry.tuning.options.config import TuningConfig

DTYPES = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def training_dtype(config: TuningConfig) -> torch.dtype:
    """Return the precision of the frozen weights and of their arithmetic."""
    return DTYPES[config.mixed_precision]


def fp16_problem(option: str, precision: str | None, *, has_gpu: bool) -> str | None:
    """Return why `precision`, the value of `option`, cannot be had without a GPU, or None."""
    if precision != "fp16" or has_gpu:
        return None
    return f"{option} fp16 needs a GPU; on the CPU type {option} bf16 or no"
