"""Which kernels run: compiled blocks, and the backend of attention."""

import importlib.util
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mimicry.tuning.hf_diffusers.training.precision import training_dtype
from mimicry.tuning.options.config import TuningConfig

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_HEAD_WIDTH = 64
_HOPPER = (9, 0)


def kernel_problems(config: TuningConfig, device: torch.device) -> list[str]:
    """Return which of the kernels that are asked for this machine does not have."""
    problems, dtype = [], training_dtype(config)
    if config.attention_backend != "auto" and not _works(config.attention_backend, device, dtype):
        others = [name for name in _BACKENDS if _works(name, device, dtype)]
        problems.append(
            f"--attention_backend {config.attention_backend} does not run on {device.type} with "
            f"--mixed_precision {config.mixed_precision}; choose one of {', '.join(['auto', *others])}"
        )
    if config.compile_blocks and not _has_compiler(device):
        what = "triton" if device.type == "cuda" else "a C++ compiler"
        problems.append(f"--compile_blocks needs {what}; install it, or leave --compile_blocks out")
    return problems


def attention_names(config: TuningConfig, device: torch.device) -> tuple[str, ...]:
    """Return the attention backends to use, the first that can first; none leaves the choice to torch."""
    if config.attention_backend != "auto":
        return (config.attention_backend,)
    if device.type != "cuda":
        return ()
    newest = torch.cuda.get_device_capability(device) >= _HOPPER
    # cuDNN is the fastest since Hopper, flash before it.
    fast = ("cudnn", "flash") if newest else ("flash", "cudnn")
    return (*fast, "efficient", "math")


def attention(config: TuningConfig, device: torch.device) -> AbstractContextManager[None]:
    """Return a context for forward and backward passes, in which attention runs on the backends to use."""
    names = attention_names(config, device)
    if not names:
        return nullcontext()
    context: AbstractContextManager[None] = sdpa_kernel(
        [_BACKENDS[name] for name in names], set_priority=True
    )
    return context


def compile_blocks(blocks: Iterable[torch.nn.Module]) -> None:
    """Compile each block in place, when it first runs; what was compiled is kept on disk."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache, "mimicry", "inductor")))
    for block in blocks:
        block.compile(fullgraph=True)


def _works(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    query = torch.zeros(1, 2, 128, _HEAD_WIDTH, device=device, dtype=dtype, requires_grad=True)
    try:
        with sdpa_kernel(_BACKENDS[name]):
            torch.autograd.grad(F.scaled_dot_product_attention(query, query, query).sum(), query)
    except RuntimeError:
        return False
    return True


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
