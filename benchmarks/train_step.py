"""Measure time and memory of a training step of a transformer of random weights, in several ways.

    .venv/bin/python -m benchmarks.train_step [--geometry large] [--cases CASE ...] [--output FILE]

A case is one of these ways, or WAY@GIB: with so much of the GPU's memory, 23.3 as on a card of 24 GB.

plain     what the DreamBooth example of diffusers does, with cached latents: peft's layers in bf16 under
          autocast, every block checkpointed, the whole transformer, text encoders and VAE in memory, AdamW
          that is not fused, and the waits for the GPU that each micro-step has there
autocast  the trainer before the lean step: peft's layers in fp32 under autocast, with conditioning table,
          as few checkpointed blocks as memory allows, the attention that is chosen for the GPU, fused AdamW
lean      the trainer as it is: its own layers, without autocast

Nothing is downloaded. The default geometry is that of Stable Diffusion 3.5 Large on CUDA, and a small one
elsewhere. A micro-step is a forward and a backward pass. TFLOP/s count the operations of one without
checkpointing, even if some are recomputed. Peaks of memory are those of the steps, not of the construction.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.kernel_profile import profile
from benchmarks.limited import limit_memory
from benchmarks.random_transformer import (
    GEOMETRIES,
    POOLED_WIDTH,
    Batch,
    Geometry,
    add_peft_adapter,
    draw_adapter,
    make_rows,
    make_transformer,
)
from benchmarks.worker import OUT_OF_MEMORY, Deadline, TaskFailed, Worker
from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.memory import checkpoint_blocks
from mimicry.tuning.hf_diffusers.sd3.modulation import CachedModulationTransformer
from mimicry.tuning.hf_diffusers.sd3.transformer import use_fused_layers
from mimicry.tuning.hf_diffusers.training.flow_matching import add_noise, flow_loss
from mimicry.tuning.hf_diffusers.training.kernels import attention, compile_blocks
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import Results, add_output_option

_LEVELS = 1000
_WARM_UP = 2
# Text encoders and VAE of Stable Diffusion 3.5 Large in bf16.
_OTHER_MODELS_BYTES = 2 * (4_762_310_656 + 694_659_840 + 123_650_304 + 83_819_683)


@dataclass(frozen=True)
class Way:
    """How to train, as the top of this file says. `exact` is fp32 throughout, in peft's layers."""

    plain: bool = False
    autocast: bool = False
    all_checkpointed: bool = False
    compiled: bool = False
    exact: bool = False
    samples: int = 1
    profiled: bool = False


WAYS = {
    "plain": Way(plain=True, autocast=True, all_checkpointed=True, profiled=True),
    "autocast": Way(autocast=True, profiled=True),
    "lean": Way(profiled=True),
    "lean, all checkpointed": Way(all_checkpointed=True),
    "lean, two samples": Way(samples=2),
    "lean, compiled": Way(compiled=True),
}
# The most important first, and last those that may run out of memory: that ends their process.
CASES = (
    *("lean", "plain", "autocast", "lean, all checkpointed", "lean@23.3", "lean@15.3"),
    *("lean, compiled", "lean, two samples", "plain@23.3", "plain@15.3"),
)


@dataclass(frozen=True)
class Task:
    """A case to measure, for another process."""

    case: str
    geometry: Geometry
    runs: int
    accumulation: int
    operations: int
    rate: float

    @property
    def way(self) -> Way:
        return WAYS[self.case.partition("@")[0]]

    @property
    def limit_gib(self) -> float:
        return float(self.case.partition("@")[2] or 0)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--geometry", choices=GEOMETRIES, default="large" if cuda else "small")
    parser.add_argument("--cases", nargs="+", type=_case, default=CASES, metavar="CASE")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=4, help="Micro-steps to an optimizer step.")
    parser.add_argument("--seconds", type=float, default=3600, help="Measure no new case after these.")
    add_output_option(parser)
    options = parser.parse_args()
    deadline, geometry = Deadline(options.seconds), GEOMETRIES[options.geometry]
    # As the trainer does, so that little memory is free in pieces only.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    results = Results(
        "train_step",
        options.output,
        threads=torch.get_num_threads(),
        geometry=asdict(geometry),
        runs=options.runs,
        accumulation=options.accumulation,
        profiles={},
    )
    operations = count_operations(geometry)
    worker = Worker(work)
    rate = worker.run("matmul", 60)
    results.add({"one micro-step [TFLOP]": operations / 1e12, "matrix multiplication [TFLOP/s]": rate / 1e12})
    for case in options.cases:
        task = Task(case, geometry, options.runs, options.accumulation, operations, rate)
        try:
            figures, kernels = worker.run(task, deadline.left())
        except TaskFailed as problem:
            results.fail(case, str(problem))
            continue
        if kernels:
            results.more["profiles"][case] = kernels
        results.add({f"{case}: {what}": value for what, value in figures.items()})
    worker.close()
    unexpected = [case for case, problem in results.problems.items() if not problem.startswith(OUT_OF_MEMORY)]
    return 1 if unexpected else 0


def _case(text: str) -> str:
    way, mark, limit = text.partition("@")
    if way not in WAYS or (mark and not limit.replace(".", "", 1).isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(WAYS)}, nor one of these with @GIB")
    return text


class Step:
    """A transformer with its adapter, and the batch that it is trained on."""

    def __init__(self, way: Way, geometry: Geometry, device: torch.device) -> None:
        self.way, self.device = way, device
        blocks = geometry.blocks if way.all_checkpointed else None
        self.config = TuningConfig(
            compile_blocks=way.compiled,
            # Without a GPU the trainer would checkpoint all of them.
            checkpointed_blocks=blocks if device.type == "cuda" else blocks or 0,
        )
        self.others = None
        if way.plain and device.type == "cuda":
            self.others = torch.empty(_OTHER_MODELS_BYTES, dtype=torch.uint8, device=device)
        kind = {} if way.plain else {"kind": CachedModulationTransformer}
        self.transformer = make_transformer(geometry, device, **kind)
        self.table = None if way.plain else make_rows(self.transformer, device)
        self.batch = Batch.draw(geometry, device, way.samples)
        if way.exact:
            self._widen()
        self.adapter = self._add_adapter()
        self.parameters = list(self.adapter.values())
        fused = None if way.plain or device.type == "cpu" else True
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.config.learning_rate, fused=fused)
        self.checkpointed = checkpoint_blocks(
            self.transformer,
            self.config,
            device,
            batch_size=way.samples,
            token_count=geometry.tokens,
        )
        if way.compiled:
            compile_blocks(self.transformer.transformer_blocks)
        self.schedule = torch.linspace(1, 1 / _LEVELS, _LEVELS)

    def _widen(self) -> None:
        """Turn all that is in bf16 into fp32, with the same numbers."""
        assert self.table is not None
        self.transformer.float()
        self.table = replace(self.table, rows_NSR=self.table.rows_NSR.float())
        self.batch = replace(self.batch, sequence=self.batch.sequence.float())

    def _add_adapter(self) -> dict[str, torch.nn.Parameter]:
        if self.way.autocast or self.way.exact:
            dtype = torch.bfloat16 if self.way.plain else torch.float32
            adapter = add_peft_adapter(self.transformer, self.config, dtype)
        else:
            use_fused_layers(self.transformer)
            adapter = add_adapter(self.transformer, self.config)
        draw_adapter(adapter)
        return adapter

    def kernels(self) -> AbstractContextManager[None]:
        """Return the context of a step: torch's choice of attention in the plain way, else the trainer's."""
        return nullcontext() if self.way.plain else attention(self.config, self.device)

    def predict(self, sigmas: Tensor) -> Tensor:
        """Return the velocity that the transformer predicts, of the shape of the latents."""
        batch = self.batch
        noisy = add_noise(batch.latents, batch.noise, sigmas)
        # The rows of the table that stand in for pooled prompts come from host memory each time.
        pooled = batch.pooled if self.table is None else self.table.rows(*self._keys())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.way.autocast):
            prediction: Tensor = self.transformer(
                hidden_states=noisy.bfloat16().to(batch.sequence.dtype),
                encoder_hidden_states=batch.sequence,
                pooled_projections=pooled,
                timestep=sigmas * _LEVELS,
                return_dict=False,
            )[0]
        return prediction

    def loss(self) -> Tensor:
        """Run a forward pass; return the loss."""
        sigmas = self._plain_sigmas() if self.way.plain else self.sigmas()
        batch = self.batch
        return flow_loss(
            self.predict(sigmas),
            batch.latents,
            batch.noise,
            sigmas,
            scheme="logit_normal",
            precondition_outputs=True,
        )

    def micro_step(self) -> None:
        """Run a forward and a backward pass."""
        loss = self.loss()
        torch.autograd.backward(loss)
        if self.way.plain:
            loss.detach().item()  # for the progress bar

    def optimizer_step(self, micro_steps: int) -> None:
        for _ in range(micro_steps):
            self.micro_step()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _keys(self) -> tuple[list[int], list[int]]:
        return list(range(self.way.samples)), [0] * self.way.samples

    def sigmas(self) -> Tensor:
        return torch.full((self.way.samples,), 0.5, device=self.device)

    def _plain_sigmas(self) -> Tensor:
        """Draw noise levels and look them up as the example does: it waits for the GPU for each sample."""
        drawn = (torch.sigmoid(torch.randn(self.way.samples)) * _LEVELS).long()
        levels = self.schedule[drawn].to(self.device)
        known = self.schedule.to(self.device)
        places = [int((known == level).nonzero().item()) for level in levels]
        return known[places].flatten()


def work(task: Task | str) -> Any:
    """Measure in the worker: a case, or the rate of matrix multiplication."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return matmul_rate(device) if isinstance(task, str) else measure(task, device)


def measure(task: Task, device: torch.device) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Return the figures of a case, and which kernels take how long if its way is to be profiled."""
    limit_memory(task.limit_gib)
    step = Step(task.way, task.geometry, device)
    figures = {"checkpointed blocks": float(step.checkpointed)}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        figures["memory before the first step [GiB]"] = torch.cuda.memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    with step.kernels():
        first, _ = timed(step.micro_step, device)
        micro, issuing = median_seconds(step.micro_step, task.runs, device)
        whole, _ = median_seconds(
            lambda: step.optimizer_step(task.accumulation), max(1, task.runs // 2), device
        )
        kernels = (
            profile(step.micro_step, device, micro) if task.way.profiled and not task.limit_gib else None
        )
    operations = task.operations * task.way.samples
    figures |= {
        "first micro-step [s]": first,
        "micro-step [s]": micro,
        "micro-step, until all its work is queued [s]": issuing,
        "optimizer step [s]": whole,
        "speed [TFLOP/s]": operations / micro / 1e12,
        "share of the matrix multiplication's rate": operations / micro / task.rate,
    }
    if device.type == "cuda":
        figures["peak of allocated memory [GiB]"] = torch.cuda.max_memory_allocated(device) / 2**30
        figures["peak of reserved memory [GiB]"] = torch.cuda.max_memory_reserved(device) / 2**30
    if kernels:
        figures["share of the micro-step in which kernels run"] = kernels["busy share"]
    return figures, kernels


def timed(action: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the seconds until the work of `action` was done, and until it was queued for the GPU."""
    begin = time.perf_counter()
    action()
    queued = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, queued - begin


def median_seconds(action: Callable[[], object], runs: int, device: torch.device) -> tuple[float, float]:
    """Return the medians of what `timed` returns, after warming up."""
    times = [timed(action, device) for _ in range(runs + _WARM_UP)][_WARM_UP:]
    done, queued = zip(*times, strict=True)
    return statistics.median(done), statistics.median(queued)


def count_operations(geometry: Geometry) -> int:
    """Return the floating-point operations of a forward and a backward pass, counted on the meta device."""
    meta = torch.device("meta")
    model = make_transformer(geometry, meta)
    # As with an adapter in the first block: gradients flow through all blocks, but not to frozen weights.
    latents, sequence = (
        torch.empty(1, *shape, dtype=torch.bfloat16, device=meta, requires_grad=True)
        for shape in ((16, geometry.side, geometry.side), (geometry.text_tokens, geometry.context_width))
    )
    with FlopCounterMode(display=False) as counter:
        output: Tensor = model(
            hidden_states=latents,
            encoder_hidden_states=sequence,
            pooled_projections=torch.empty(1, POOLED_WIDTH, dtype=torch.bfloat16, device=meta),
            timestep=torch.empty(1, device=meta),
            return_dict=False,
        )[0]
        torch.autograd.backward(output.sum())
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device) -> float:
    """Return the FLOP/s of the device's bf16 matrix multiplication."""
    side = 8192 if device.type == "cuda" else 1024
    left, right, product = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(3))
    return 2 * side**3 / median_seconds(lambda: torch.mm(left, right, out=product), 10, device)[0]


if __name__ == "__main__":
    raise SystemExit(main())
