"""What a device computes in, and its memory: precisions, a quantised base, free bytes, copies.

A quantised base has frozen weights in 4 or 8 bits, by bitsandbytes, for GPUs too small for 16. The adapter
stays in fp32. Arithmetic is in the training precision: weights are widened, or multiplied in int8, when they
are used.
"""

import gc
import importlib
import logging
import os
import resource
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mimicry.common.errors import UsageError
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
            "quantization_config": BitsAndBytesConfig(
                load_in_8bit=True,
                # The default looks in each product for inputs that are larger than 6, and the GPU waits for
                # the answer, some 450 times a forward pass.
                llm_int8_threshold=0.0,
                llm_int8_skip_modules=skipped,
            ),
        }
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    }


def free_device_bytes(device: torch.device) -> int:
    """Return how much of the GPU's memory this process may still use, what its allocator caches included."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = int(torch.cuda.memory_reserved(device))
    # Older releases of torch cannot tell the limit that was set.
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):
        # Unlike the others it takes no device without a number, as accelerate's may be.
        number = torch.cuda.current_device() if device.index is None else device.index
        limit = int(total * torch.cuda.get_per_process_memory_fraction(number))
        free = min(free, limit - reserved)
    return int(free) + reserved - int(torch.cuda.memory_allocated(device))


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak so far: of the GPU's memory when there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if os.uname().sysname == "Darwin" else peak * 1024)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy `values` to the device without waiting for the work that it has already been given; on any thread.

    Two things may go wrong with such a copy, and do not:

    - The pinned memory that it reads is free for others before it has ended. torch's allocator of pinned
      memory notes the stream of the copy, and hands the memory out again when the copy has ended there.
    - The copy is used before it has ended. No thread chooses a stream here, so all copies and all of the
      training's work are on the default stream of the device, in the order in which they were asked for; and
      a thread gets a tensor from another one only after that has asked for the copy.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type == "cuda")
