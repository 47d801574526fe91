"""A quantised base: frozen weights in 4 or 8 bits, by bitsandbytes, for GPUs too small for 16.

The adapter stays in fp32. Arithmetic is in the training precision: weights are widened, or multiplied in
int8, when they are used.
"""

import importlib
import logging
from collections.abc import Sequence
from typing import Any

import torch

from mimicry.common.errors import UsageError
from mimicry.tuning.options.config import TuningConfig


def check_quantization(config: TuningConfig, device: torch.device) -> None:
    """Check that the base can be quantised as `config` asks for.

    Raises:
        UsageError: bitsandbytes is missing, or there is no GPU; all problems at once.
    """
    if config.quantize_base == "none":
        return
    problems, flag = [], f"--quantize_base {config.quantize_base}"
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        problems.append(
            f"{flag} needs bitsandbytes, which cannot be imported ({error}); type "
            f"pip install bitsandbytes, or leave --quantize_base out"
        )
    if device.type != "cuda":
        problems.append(f"{flag} needs a CUDA GPU, and this is a {device.type}; leave --quantize_base out")
    if problems:
        raise UsageError(*problems)


def loading_arguments(config: TuningConfig, dtype: torch.dtype, unquantised: Sequence[str]) -> dict[str, Any]:
    """Return what `from_pretrained` is told, so that it quantises each weight as it reads it.

    Args:
        dtype: the precision to compute in.
        unquantised: parts whose weights stay as they are, by the ends of their names.
    """
    if config.quantize_base == "none":
        return {}
    from diffusers import BitsAndBytesConfig

    # It would say with each product that int8 takes its inputs in fp16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    skipped = list(unquantised)
    if config.quantize_base == "int8":
        return {
            "quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped),
        }
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    }
