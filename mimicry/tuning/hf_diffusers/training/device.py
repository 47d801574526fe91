"""What a device computes in, and its memory: precisions, a quantised base, free bytes, copies, prefetching.

A quantised base has frozen weights in 4 or 8 bits, by bitsandbytes, which are widened, or multiplied in int8,
when they are used; the adapter stays in fp32.
"""

import gc
import importlib
import logging
import os
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mimicry.common.errors import UsageError
from mimicry.tuning.options.config import TuningConfig

DTYPES = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Item = TypeVar("Item")

_GPU_WORKERS = 2


def training_dtype(config: TuningConfig) -> torch.dtype:
    """Return the precision of the frozen weights and of their arithmetic."""
    return DTYPES[config.mixed_precision]


def fp16_problem(option: str, precision: str | None, *, has_gpu: bool) -> str | None:
    """Return why `precision`, the value of `option`, cannot be had without a GPU, or None."""
    if precision != "fp16" or has_gpu:
        return None
    return f"{option} fp16 needs a GPU; on the CPU type {option} bf16 or no"


def check_quantization(config: TuningConfig, device: torch.device) -> None:
    """Raise UsageError where bitsandbytes or a GPU is missing to quantise the base as `config` asks for."""
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

    `dtype` is the precision to compute in; the parts whose names end in one of `unquantised` stay as they
    are.
    """
    if config.quantize_base == "none":
        return {}
    from diffusers import BitsAndBytesConfig

    # It would say with each product that int8 takes its inputs in fp16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if config.quantize_base == "int8":
        # The default looks in each product for inputs that are larger than 6, and the GPU waits for the
        # answer, some 450 times a forward pass.
        chosen: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    else:
        chosen = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**chosen, llm_int8_skip_modules=list(unquantised))}


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

    torch hands the pinned memory out again only when the copy has ended on its stream. All copies and all
    work of the training are on the default stream, so none is used before it has ended; and a thread gets a
    tensor from another one only after that has asked for the copy.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type == "cuda")


def worker_count(config: TuningConfig, device: torch.device) -> int:
    """Return how many threads prepare batches for `device`.

    By default a GPU has two, so that it need not wait for samples; on the CPU they would take turns with the
    training. Where each batch encodes its images there are none: the VAE on two more threads would take
    memory that the choice of checkpointed blocks does not count.
    """
    if config.dataloader_num_workers is not None:
        return config.dataloader_num_workers
    return _GPU_WORKERS if device.type == "cuda" and config.cache_latents else 0


class Prefetch(Generic[Item]):
    """Items 0 to `count` - 1, each made by `make(number)`; those after the one asked for are made ahead.

    `make` must be a function of the number alone: it does not matter on which thread, when, or in which order
    items are made. With `worker_count` 0 the caller makes each when it asks, in the context `waiting`.
    """

    def __init__(
        self,
        make: Callable[[int], Item],
        count: int,
        worker_count: int,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._make = make
        self._count = count
        self._worker_count = worker_count
        self._waiting = waiting
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Item]] = {}

    def get(self, number: int) -> Item:
        """Return item `number`, and have as many following ones made as there are workers."""
        with self._waiting():
            if self._worker_count == 0:
                return self._make(number)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._worker_count, thread_name_prefix="prefetch")
            wanted = range(number, max(number + 1, min(number + 1 + self._worker_count, self._count)))
            # What was made ahead of another place is of no use here.
            self._coming = {other: item for other, item in self._coming.items() if other in wanted}
            for other in wanted:
                if other not in self._coming:
                    self._coming[other] = self._pool.submit(self._make, other)
            return self._coming.pop(number).result()

    def close(self) -> None:
        """Make nothing more; returns when the threads have ended."""
        self._coming = {}
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
