"""Print GPU, libraries and what the GPU reaches at most: matrix multiplication, and copying its memory.

.venv/bin/python -m benchmarks.gpu_facts [--output FILE]
"""

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.train_step import matmul_rate, median_seconds
from tools.results_file import Results, add_output_option


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output_option(parser)
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    cudnn: Any = torch.backends.cudnn
    libraries = {"cuda": torch.version.cuda, "cudnn": cudnn.version(), "triton": _triton()}
    results = Results("gpu_facts", options.output, libraries=libraries)
    print(results.about["hardware"], {**results.about["versions"], **libraries}, sep="\n")
    if cuda:
        free, total = torch.cuda.mem_get_info()
        results.add({"free memory [GiB]": free / 2**30, "memory [GiB]": total / 2**30})
    results.add({"matrix multiplication in bf16 [TFLOP/s]": matmul_rate(device) / 1e12})
    results.add({"copy within memory, read and written [TB/s]": copy_rate(device) / 1e12})


def copy_rate(device: torch.device) -> float:
    """Return the bytes that a copy reads and writes in a second."""
    source = torch.randint(
        0, 255, (2 << 30 if device.type == "cuda" else 64 << 20,), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), 10, device)[0]


def _triton() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
