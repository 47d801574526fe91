"""Which kernels run: compiled blocks, and the backend of attention."""

import importlib.util
import inspect
import math
import os
import shutil
import sysconfig
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mimicry.tuning.hf_diffusers.training.device import training_dtype
from mimicry.tuning.options.config import TuningConfig

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# torch prefers cuDNN's attention on these GPUs alone, and only from cuDNN 9.15.1 on: older ones read past the
# end where 128 does not divide the number of tokens (pytorch issue 169849), and ours is 4250.
_CUDNN_MAJORS = (9, 10)
_FIRST_SOUND_CUDNN = 91501
# 16 bits are off by about 0.01, see `attention_error`; a kernel with a fault by far more.
_LARGEST_ERROR = 0.05
# Each kind of block is compiled for training, for evaluation, and for each batch size. torch gives up after
# 8; SD3.5 Medium takes 10 with validation images, and 16 where some of its blocks have no adapter.
_MOST_GRAPHS = 64


class AttentionShape(NamedTuple):
    """What attention is given: samples, heads, tokens of image and prompt together, values of a head."""

    batch_size: int
    head_count: int
    token_count: int
    head_width: int


@dataclass(frozen=True)
class AttentionChoice:
    """The backends to use, in order (none: torch chooses), or why the one that was asked for cannot be."""

    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str | None = None


def choose_attention(config: TuningConfig, device: torch.device, shape: AttentionShape) -> AttentionChoice:
    """Choose the attention backends, of which the first was checked at `shape`."""
    names, dtype = attention_names(config, device), training_dtype(config)
    where = f"on {device.type} with --mixed_precision {config.mixed_precision}"
    where += " and --deterministic" if config.deterministic else ""
    found = []
    if config.attention_backend == "cudnn" and device.type == "cuda" and not _trusts_cudnn(device):
        found.append(
            f"--attention_backend cudnn: torch would not choose cuDNN {cudnn_version()} on "
            f"this GPU by itself; gradients may be wrong"
        )
    for place, name in enumerate(names):
        error = attention_error(name, shape, device, dtype)
        if _is_small(error):
            return AttentionChoice(names[place:], tuple(found))
        fault = _fault(error, where, shape)
        if config.attention_backend != "auto":
            right = [name for name in _BACKENDS if _is_small(attention_error(name, shape, device, dtype))]
            problem = f"--attention_backend {name} {fault}; choose one of {', '.join(['auto', *right])}"
            return AttentionChoice(problem=problem)
        if error is not None:
            found.append(f"attention by {name} {fault}, so it is not used")
    return AttentionChoice(warnings=tuple(found))


def _is_small(error: float | None) -> bool:
    return error is not None and error <= _LARGEST_ERROR


def _fault(error: float | None, where: str, shape: AttentionShape) -> str:
    if error is None:
        return f"does not run {where}"
    wrong = f"is wrong by {error:.0%}" if math.isfinite(error) else "returns numbers that are not finite"
    return f"{wrong} {where}, for {shape.token_count} tokens"


def attention_names(config: TuningConfig, device: torch.device) -> tuple[str, ...]:
    """Return the attention backends to try, the best first; none leaves the choice to torch."""
    if config.attention_backend != "auto":
        return (config.attention_backend,)
    if device.type != "cuda":
        return ()
    # cuDNN's is the fastest where it is right, but none of its algorithms is deterministic.
    first = ("cudnn",) if _trusts_cudnn(device) and not config.deterministic else ()
    return (*first, "flash", "efficient", "math")


def cudnn_version() -> int | None:
    """Return the version of the cuDNN that torch has loaded, such as 91501 for 9.15.1; of MIOpen on ROCm."""
    backend: Any = torch.backends.cudnn
    version: int | None = backend.version()
    return version


def _trusts_cudnn(device: torch.device) -> bool:
    version = cudnn_version()
    # ROCm tells MIOpen's version there, which is a larger number, and capabilities of its own.
    if torch.version.hip is not None or version is None or version < _FIRST_SOUND_CUDNN:
        return False
    return torch.cuda.get_device_capability(device)[0] in _CUDNN_MAJORS


def attention_error(
    name: str, shape: AttentionShape, device: torch.device, dtype: torch.dtype
) -> float | None:
    """Return how far a backend is off, in its output and its three gradients; None where it does not run.

    That is the largest error of the values of any token: its norm, relative to the norm of the right values
    or, where those are small, to the root mean square of all these norms. "math" in fp32 is right by
    definition.
    """
    if name == "math":
        return 0.0
    generator = torch.Generator(device).manual_seed(0)
    *inputs, weights = (
        torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype) for _ in range(4)
    )
    try:
        results = _attend(name, inputs, weights)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None
    errors = []
    # Heads have nothing to do with each other. One at a time needs the memory of one.
    for at in product(range(shape.batch_size), range(shape.head_count)):
        right = _attend(
            "math", [value[at].float()[None, None] for value in inputs], weights[at].float()[None, None]
        )
        errors += [
            _largest_error(ours[at].float(), theirs[0, 0])
            for ours, theirs in zip(results, right, strict=True)
        ]
    return float(torch.stack(errors).max())


def _attend(name: str, inputs: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """Return the output of attention for query, key and value, and the gradients of its weighted sum."""
    query, key, value = leaves = [one.detach().requires_grad_() for one in inputs]
    # torch explains at length why a backend does not run.
    with warnings.catch_warnings(action="ignore"), sdpa_kernel(_BACKENDS[name]):
        output = F.scaled_dot_product_attention(query, key, value)
        return (output.detach(), *torch.autograd.grad(output, leaves, weights))


def _largest_error(ours_TD: Tensor, right_TD: Tensor) -> Tensor:
    norms_T = right_TD.norm(dim=-1)
    scales_T = torch.maximum(norms_T, norms_T.square().mean().sqrt())
    errors_T: Tensor = (ours_TD - right_TD).norm(dim=-1) / scales_T
    return errors_T.max()


def attention(config: TuningConfig, device: torch.device) -> AbstractContextManager[None]:
    """Return a context for forward and backward passes, in which attention runs on the backends to try."""
    return attention_by(attention_names(config, device))


def attention_by(names: Sequence[str]) -> AbstractContextManager[None]:
    """Return a context in which attention runs on the first of these backends that can."""
    if not names:
        return nullcontext()
    context: AbstractContextManager[None] = sdpa_kernel(
        [_BACKENDS[name] for name in names], set_priority=True
    )
    return context


def compile_problem(config: TuningConfig, device: torch.device) -> str | None:
    """Return why blocks cannot be compiled on this machine, if that is asked for."""
    missing = _missing_for_compilation(device) if config.compile_blocks else []
    if not missing:
        return None
    them = "it" if len(missing) == 1 else "them"
    return f"--compile_blocks needs {' and '.join(missing)}; install {them}, or leave --compile_blocks out"


def _missing_for_compilation(device: torch.device) -> list[str]:
    missing = []
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            missing.append("triton")
        # With it, triton builds what starts its kernels.
        if not _is_installed(os.environ.get("CC"), "gcc", "clang"):
            missing.append("a C compiler (gcc or clang)")
    elif not _is_installed(os.environ.get("CXX"), "g++", "clang++"):
        missing.append("a C++ compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("the headers of Python (Python.h)")
    return missing


def _is_installed(*programs: str | None) -> bool:
    return any(program and shutil.which(program) for program in programs)


def compile_blocks(blocks: Iterable[torch.nn.Module]) -> None:
    """Compile each block in place, when it first runs; what was compiled is kept on disk."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(cache, "mimicry", "inductor")))
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # Newer releases keep settings for each thread, and backward passes run in threads of their own.
        limit = {"recompile_limit": _MOST_GRAPHS}
    else:
        limit, settings = {}, torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, _MOST_GRAPHS)
    for block in blocks:
        # A second batch size would otherwise be compiled for any size, which is slower.
        block.compile(fullgraph=True, dynamic=False, **limit)
