"""Run a program with a limit on the GPU's memory, and print at its end how much it used at most.

    python -m benchmarks.limited 15.3 mimicry.cli samples --pilot

The first argument is the limit in GiB, 0 for none; then come a module that is run as `python -m` would, and
its arguments. Beyond the limit, allocations fail as on a smaller GPU. The limit holds for what PyTorch
allocates: a card of 16 GB leaves it about 15.3 GiB, one of 24 GB about 23.3.
"""

import runpy
import sys
from typing import Any

import torch

from benchmarks.pipeline_sizes import PEAK_LINE


def limit_memory(limit_gib: float) -> None:
    """Let this process allocate at most so much of the GPU's memory; 0 is all of it."""

    def set_limit() -> None:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * 2**30 / total) if limit_gib else 1.0)

    if torch.cuda.is_available():
        # As soon as CUDA is set up, and not before the program has set what the allocator reads then.
        lazily: Any = torch.cuda._lazy_call
        lazily(set_limit)


def main() -> None:
    limit_memory(float(sys.argv[1]))
    sys.argv = sys.argv[2:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    finally:
        if torch.cuda.is_available():
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            print(f"{PEAK_LINE}{allocated} allocated, {reserved} reserved", flush=True)


if __name__ == "__main__":
    main()
