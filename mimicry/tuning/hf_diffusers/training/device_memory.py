"""The memory of the device: what is free, what is given back, what was used at most."""

import gc
import os
import resource

import torch


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
