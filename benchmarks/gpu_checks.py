"""Check on a GPU what the trainer relies on, at the sizes of Stable Diffusion 3.5 Large.

    .venv/bin/python -m benchmarks.gpu_checks [--geometry large] [--checks CHECK ...] [--output FILE]

attention_cudnn, attention_flash, attention_efficient
               error and time of each backend of attention, the error against maths in fp32
lean           blocks in the way of the trainer: what they keep, whether checkpointing changes gradients
autocast       the same in the way of peft and autocast
gradients      error of the adapter's gradients in both ways, against the same in fp32
table          whether the conditioning table changes what the transformer predicts
forward        time of a forward pass without gradients, for 1, 2 and 4 samples
deterministic  like lean, with deterministic algorithms
medium         like lean, for blocks with two attentions, as Stable Diffusion 3.5 Medium has them
compile        time to compile the blocks, with an empty cache if the folder is new
compiled       like lean, compiled; its first step finds what compile left in the cache

Weights are random; nothing is downloaded. A check that fails leaves the others alone. "kept" are bytes that a
block holds for its backward pass, for each number in its input; the trainer's own constants for them are in
the file as `constants`. The default geometry is a small one where there is no GPU.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.random_transformer import GEOMETRIES, Batch, Geometry, make_transformer
from benchmarks.train_step import WAYS, Step, Way, median_seconds, timed
from benchmarks.worker import Deadline, TaskFailed, Worker
from mimicry.tuning.hf_diffusers.sd3 import memory
from mimicry.tuning.hf_diffusers.sd3.memory import checkpoint_first
from mimicry.tuning.hf_diffusers.sd3.modulation import (
    CachedModulationTransformer,
    WeightFiles,
    compute_modulation,
)
from mimicry.tuning.hf_diffusers.sd3.transformer import use_fused_layers
from mimicry.tuning.hf_diffusers.training.kernels import attention
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import Results, add_output_option

Figures = dict[str, float | bool]
_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_RUNS = 10
# In 16-bit precision a checkpointed block keeps its input, and nothing else.
_INPUT_BYTES = 2
_CUDA_ONLY = {"attention_cudnn", "attention_efficient"}
_FRESH = {"compile", "compiled"}
_MEDIUM_HEADS = 24


@dataclass(frozen=True)
class Task:
    check: str
    geometry: Geometry


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--geometry", choices=GEOMETRIES, default="large" if cuda else "small")
    here = [check for check in CHECKS if cuda or check not in _CUDA_ONLY]
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=here, metavar="CHECK")
    parser.add_argument("--seconds", type=float, default=3600, help="Begin no check after these.")
    add_output_option(parser)
    options = parser.parse_args()
    deadline, geometry = Deadline(options.seconds), GEOMETRIES[options.geometry]
    constants = {name: value for name, value in vars(memory).items() if isinstance(value, int)}
    results = Results("gpu_checks", options.output, geometry=asdict(geometry), constants=constants)
    worker = Worker(work)
    for check in options.checks:
        # The library reads it once, at its first call.
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if check == "deterministic" else None
        try:
            figures = worker.run(
                Task(check, geometry), deadline.left(), fresh=check in _FRESH, environment=environment
            )
        except TaskFailed as problem:
            results.fail(check, str(problem))
        else:
            results.add({f"{check}: {what}": value for what, value in figures.items()})
    worker.close()
    return 1 if results.problems else 0


def work(task: Task) -> Figures:
    """Run a check in the worker."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return CHECKS[task.check](task.geometry, device)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference over that of the reference; not finite numbers give no number."""
    difference = found.double() - reference.double()
    return float(difference.norm() / reference.double().norm())


def check_attention(name: str, geometry: Geometry, device: torch.device) -> Figures:
    """Compare forward and backward pass of a backend with maths in fp32, and time both."""
    generator = torch.Generator(device).manual_seed(4)
    # Numbers lie in memory as the projections leave them: heads side by side.
    query, key, value, upstream = (
        torch.randn(1, geometry.tokens, geometry.heads, 64, generator=generator, device=device)
        .bfloat16()
        .transpose(1, 2)
        for _ in range(4)
    )
    names = ("output", "gradient of query", "gradient of key", "gradient of value")
    reference = _exact_attention(query, key, value, upstream)
    operations = 4 * geometry.tokens**2 * geometry.width
    with sdpa_kernel(_BACKENDS[name]):
        first, second = (_attend(query, key, value, upstream) for _ in range(2))
        forward = _seconds(lambda: F.scaled_dot_product_attention(query, key, value), device)
        both = _seconds(lambda: _attend(query, key, value, upstream), device)
    errors = map(relative_error, first, reference)
    return {
        **{f"error of the {what}": error for what, error in zip(names, errors, strict=True)},
        "the same bits twice": all(map(torch.equal, first, second)),
        "forward [ms]": forward * 1e3,
        "forward [TFLOP/s]": operations / forward / 1e12,
        "forward and backward [ms]": both * 1e3,
        # Two matrix products forward, five backward.
        "backward [TFLOP/s]": 2.5 * operations / (both - forward) / 1e12,
    }


def _attend(query: Tensor, key: Tensor, value: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])
    return (output.detach(), *torch.autograd.grad(output, inputs, upstream))


def _exact_attention(*inputs: Tensor) -> list[Tensor]:
    """Return what `_attend` does, in fp32 and head by head, which takes less memory."""
    with sdpa_kernel(SDPBackend.MATH):
        heads = [
            _attend(*(tensor[:, head : head + 1].float() for tensor in inputs))
            for head in range(inputs[0].shape[1])
        ]
    return [torch.cat(parts, dim=1) for parts in zip(*heads, strict=True)]


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return the time of an action when many of them follow each other: the host is ahead of the GPU."""
    if device.type != "cuda":
        return median_seconds(action, _RUNS, device)[0]
    for _ in range(3):
        action()
    make: Any = torch.cuda.Event
    marks = [make(enable_timing=True) for _ in range(_RUNS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        action()
        mark.record()
    torch.cuda.synchronize(device)
    return 1e-3 * float(statistics.median(begin.elapsed_time(end) for begin, end in pairwise(marks)))


def check_blocks(
    way: Way, geometry: Geometry, device: torch.device, *, blocks: int = 4, dual: int = 0
) -> Figures:
    """Run a few blocks with none to all of them checkpointed: are gradients the same, and what is kept?"""
    geometry = replace(geometry, blocks=blocks, dual=dual)
    step = Step(way, geometry, device)
    values = geometry.tokens * geometry.width * way.samples
    kept, peaks, gradients = [], [], []
    with step.kernels():
        checkpoint_first(step.transformer, 0)
        first = timed(step.micro_step, device)[0]
        steady = median_seconds(step.micro_step, 3, device)[0]
        # Twice without any: the same work may not give the same bits.
        for count in (0, *range(blocks + 1)):
            checkpoint_first(step.transformer, count)
            step.optimizer.zero_grad()
            before = _allocated(device)
            loss = step.loss()
            kept.append((_allocated(device) - before) / values)
            torch.autograd.backward(loss)
            peaks.append((_peak(device) - before) / values)
            gradients.append(_gradients(step))
    figures: Figures = {
        "first micro-step [s]": first,
        "micro-step [s]": steady,
        "the same gradients twice": torch.equal(gradients[0], gradients[1]),
    }
    for count in range(1, blocks + 1):
        same = torch.equal(gradients[1], gradients[count + 1])
        figures[f"the same gradients with {count} of {blocks} checkpointed"] = same
        if not same:
            error = relative_error(gradients[count + 1], gradients[1])
            figures[f"relative difference with {count} of {blocks} checkpointed"] = error
    if device.type == "cuda":
        ordinary = blocks - 1  # the last one has no layers behind its prompt
        figures["kept by a block [B/value]"] = (kept[1] - kept[ordinary + 1]) / ordinary + _INPUT_BYTES
        figures["kept, all blocks checkpointed [B/value]"] = kept[-1]
        figures["peak, no block checkpointed [B/value]"] = peaks[1]
        figures["peak, all blocks checkpointed [B/value]"] = peaks[-1]
    return figures


def _gradients(step: Step) -> Tensor:
    """Return all gradients of the adapter in a row, by the order of its names."""
    found = [step.adapter[name].grad for name in sorted(step.adapter)]
    return torch.cat([gradient.flatten().float() for gradient in found if gradient is not None])


def _allocated(device: torch.device) -> int:
    """Return the bytes in use, and forget the peak."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def check_gradients(geometry: Geometry, device: torch.device) -> Figures:
    """Compare the adapter's gradients of both ways with those in fp32, on the same numbers."""
    geometry = replace(geometry, blocks=3)
    ways = {"fp32": Way(exact=True), "lean": WAYS["lean"], "autocast": WAYS["autocast"]}
    gradients = {}
    # Else cuDNN's convolutions in fp32 would round as they do in TF32.
    torch.backends.cudnn.allow_tf32 = False
    for name, way in ways.items():
        step = Step(way, geometry, device)
        with sdpa_kernel(SDPBackend.MATH) if way.exact else step.kernels():
            step.micro_step()
        gradients[name] = _gradients(step)
        del step
    reference = gradients.pop("fp32")
    return {f"error, {name}": relative_error(found, reference) for name, found in gradients.items()}


@torch.no_grad()
def check_table(geometry: Geometry, device: torch.device) -> Figures:
    """Compare what the transformer predicts with and without a conditioning table."""
    geometry = replace(geometry, blocks=2)
    whole = make_transformer(geometry, device)
    cached = make_transformer(geometry, device, CachedModulationTransformer)
    cached.load_state_dict(whole.state_dict(), strict=False)
    for transformer in (whole, cached):
        use_fused_layers(transformer)
    timesteps = torch.linspace(1000, 1, 1000)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        whole.save_pretrained(name)
        weights = WeightFiles.find(Path(name), None)
        assert weights is not None
        for count in (1, 2, 4):
            batch = Batch.draw(geometry, device, count)
            chosen = [900 // (place + 1) for place in range(count)]
            known: dict[str, Any] = {
                "hidden_states": batch.latents.bfloat16(),
                "encoder_hidden_states": batch.sequence,
            }
            known |= {"timestep": timesteps[chosen].to(device), "return_dict": False}
            with attention(TuningConfig(), device):
                table = compute_modulation(
                    cached,
                    weights,
                    timesteps_T=timesteps,
                    pooled_NP=batch.pooled[:1],
                    keys=[(level, 0) for level in chosen],
                    batch_size=count,
                )
                wanted = whole(pooled_projections=batch.pooled[:1].repeat(count, 1), **known)[0]
                found = cached(pooled_projections=table.rows(chosen, [0] * count), **known)[0]
            figures[f"the same bits, {count} samples"] = torch.equal(wanted, found)
            figures[f"relative difference, {count} samples"] = relative_error(found, wanted)
    return figures


def check_forward(geometry: Geometry, device: torch.device) -> Figures:
    """Time forward passes without gradients, as evaluation and sampling run them."""
    figures: Figures = {}
    for count in (1, 2, 4):
        step = Step(replace(WAYS["lean"], samples=count), geometry, device)
        with step.kernels(), torch.no_grad():
            seconds = median_seconds(partial(step.predict, step.sigmas()), 5, device)[0]
        figures[f"{count} samples [s]"] = seconds
        figures[f"{count} samples, for each [s]"] = seconds / count
        del step  # before the next one is made
    return figures


def check_deterministic(geometry: Geometry, device: torch.device) -> Figures:
    torch.use_deterministic_algorithms(True)
    try:
        return check_blocks(WAYS["lean"], geometry, device)
    finally:
        torch.use_deterministic_algorithms(False)


def check_medium(geometry: Geometry, device: torch.device) -> Figures:
    heads = min(geometry.heads, _MEDIUM_HEADS)
    return check_blocks(WAYS["lean"], replace(geometry, heads=heads), device, dual=3)


def check_compile(geometry: Geometry, device: torch.device) -> Figures:
    step = Step(WAYS["lean, compiled"], replace(geometry, blocks=4), device)
    checkpoint_first(step.transformer, 0)
    with step.kernels():
        first = timed(step.micro_step, device)[0]
        return {"seconds": first - median_seconds(step.micro_step, 3, device)[0]}


CHECKS: Mapping[str, Callable[[Geometry, torch.device], Figures]] = {
    **{f"attention_{name}": partial(check_attention, name) for name in _BACKENDS},
    "lean": lambda geometry, device: check_blocks(WAYS["lean"], geometry, device),
    "autocast": lambda geometry, device: check_blocks(WAYS["autocast"], geometry, device),
    "gradients": check_gradients,
    "table": check_table,
    "forward": check_forward,
    "deterministic": check_deterministic,
    "medium": check_medium,
    "compile": check_compile,
    "compiled": lambda geometry, device: check_blocks(WAYS["lean, compiled"], geometry, device),
}


if __name__ == "__main__":
    raise SystemExit(main())
