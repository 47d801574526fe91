"""Measure time and memory of a micro-step and an optimizer step, adding one technique after the other.

    .venv/bin/python -m benchmarks.train_step [--geometry large] [--memory-limit-gib 24] [--output FILE]

The first way is the plain one: eager, every block checkpointed, the adapter in bf16, the full transformer,
text encoders and VAE still in memory when it is made. Each of the next ways adds one technique to the one
before it. Weights are random and are made on the device; nothing is downloaded. The default geometry is that
of Stable Diffusion 3.5 Large on CUDA, and a small one elsewhere. TFLOP/s count the operations of a pass
without checkpointing, even if some are recomputed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.memory import (
    checkpoint_first,
    choose_checkpointed_blocks,
)
from mimicry.tuning.hf_diffusers.sd3.modulation import CachedModulationTransformer, ModulationCache
from mimicry.tuning.hf_diffusers.training.device_memory import free_device_bytes
from mimicry.tuning.hf_diffusers.training.flow_matching import add_noise, flow_loss
from mimicry.tuning.hf_diffusers.training.kernels import attention, compile_blocks
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import add_output_option, report

_POOLED_WIDTH = 2048
_LEVELS = 1000
_WARM_UP = 2
# Text encoders and VAE of Stable Diffusion 3.5 Large in bf16.
_OTHER_MODELS_BYTES = 2 * (4_762_310_656 + 694_659_840 + 123_650_304 + 83_819_683)
WAYS = ("plain", "fp32 adapter", "table", "few checkpointed", "attention", "compile")


@dataclass(frozen=True)
class Geometry:
    """Sizes of the transformer and its input; `side` is the width of the latents."""

    blocks: int
    heads: int
    context_width: int
    side: int
    text_tokens: int


GEOMETRIES = {
    "large": Geometry(blocks=38, heads=38, context_width=4096, side=128, text_tokens=154),
    "small": Geometry(blocks=4, heads=4, context_width=256, side=16, text_tokens=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--geometry", choices=GEOMETRIES, default="large" if cuda else "small")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--accumulation", type=int, default=4, help="Micro-steps to an optimizer step.")
    parser.add_argument("--memory-limit-gib", type=float, help="Use at most this much of the GPU's memory.")
    add_output_option(parser)
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda and options.memory_limit_gib:
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(options.memory_limit_gib * 2**30 / total, device)
    geometry = GEOMETRIES[options.geometry]
    flop_count = count_flops(geometry)
    rate = matmul_rate(device)
    figures = {"one micro-step [TFLOP]": flop_count / 1e12, "matrix multiplication [TFLOP/s]": rate / 1e12}
    for way in WAYS:
        if way in options.ways:
            figures |= measure(way, geometry, device, options, flop_count, rate)
    report(
        "train_step",
        figures,
        options.output,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        threads=torch.get_num_threads(),
        geometry=asdict(geometry),
        runs=options.runs,
        accumulation=options.accumulation,
        memory_limit_gib=options.memory_limit_gib,
    )


class Step:
    """A transformer with its adapter, and the batch of one sample that it is trained on."""

    def __init__(self, way: str, geometry: Geometry, device: torch.device) -> None:
        rank = WAYS.index(way)
        self.config = TuningConfig(compile_blocks=rank >= WAYS.index("compile"))
        self.device, self.way_number = device, rank
        others = None
        if rank == 0 and device.type == "cuda":
            others = torch.empty(_OTHER_MODELS_BYTES, dtype=torch.uint8, device=device)
        tabled = rank >= WAYS.index("table")
        self.transformer = make_transformer(geometry, device, CachedModulationTransformer if tabled else None)
        del others
        self.parameters = list(add_adapter(self.transformer, self.config).values())
        if rank == 0:
            for parameter in self.parameters:
                parameter.data = parameter.data.bfloat16()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.config.learning_rate)
        self.table = make_rows(self.transformer, device) if tabled else None
        self.checkpointed = self._checkpoint(geometry)
        if self.config.compile_blocks:
            compile_blocks(self.transformer.transformer_blocks)
        shape = (1, 16, geometry.side, geometry.side)
        self.latents, self.noise = (torch.randn(shape, device=device) for _ in range(2))
        self.sequence = torch.randn(
            1, geometry.text_tokens, geometry.context_width, device=device, dtype=torch.bfloat16
        )
        self.pooled = torch.randn(1, _POOLED_WIDTH, device=device, dtype=torch.bfloat16)

    def _checkpoint(self, geometry: Geometry) -> int:
        count = geometry.blocks
        if self.way_number >= WAYS.index("few checkpointed"):
            count = 0
            if self.device.type == "cuda":
                tokens = (geometry.side // 2) ** 2 + geometry.text_tokens
                count = choose_checkpointed_blocks(
                    free_device_bytes(self.device),
                    stream_values=tokens * self.transformer.inner_dim,
                    value_bytes=2,
                    block_count=geometry.blocks,
                    trained_parameters=sum(parameter.numel() for parameter in self.parameters),
                    compiled=self.config.compile_blocks,
                )
        checkpoint_first(self.transformer, count)
        return count

    def kernels(self) -> AbstractContextManager[None]:
        """Return the context of a step: torch's choice of attention, or ours from that way on."""
        if self.way_number < WAYS.index("attention"):
            return nullcontext()
        return attention(self.config, self.device)

    def micro_step(self) -> None:
        sigmas = torch.full((1,), 0.5, device=self.device)
        noisy = add_noise(self.latents, self.noise, sigmas)
        with torch.autocast(self.device.type, torch.bfloat16):
            prediction = self.transformer(
                hidden_states=noisy.bfloat16(),
                encoder_hidden_states=self.sequence,
                pooled_projections=self.pooled if self.table is None else self.table.rows([500], [0]),
                timestep=torch.full((1,), 500.0, device=self.device),
                return_dict=False,
            )[0]
        loss = flow_loss(
            prediction, self.latents, self.noise, sigmas, scheme="logit_normal", precondition_outputs=True
        )
        torch.autograd.backward(loss)

    def optimizer_step(self, micro_steps: int) -> None:
        for _ in range(micro_steps):
            self.micro_step()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_transformer(geometry: Geometry, device: torch.device, kind: Any = None) -> Any:
    """Return a transformer of random weights in bf16."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = (kind or SD3Transformer2DModel)(
                sample_size=128,
                num_layers=geometry.blocks,
                num_attention_heads=geometry.heads,
                attention_head_dim=64,
                joint_attention_dim=geometry.context_width,
                caption_projection_dim=64 * geometry.heads,
                pooled_projection_dim=_POOLED_WIDTH,
                pos_embed_max_size=geometry.side // 2,
                qk_norm="rms_norm",
            )
    finally:
        torch.set_default_dtype(previous)
    # A model that is read in bf16 also has its position embeddings in bf16.
    model.pos_embed.to(torch.bfloat16)
    return model.to(device).train()


def make_rows(transformer: CachedModulationTransformer, device: torch.device) -> ModulationCache:
    """Return a table of as many rows as a long run has, the same numbers in each."""
    width = sum(len(layer.columns) for layer in transformer.replaced_layers().values())
    rows = torch.randn(1, 1, width, dtype=torch.bfloat16).repeat(_LEVELS, 1, 1)
    return ModulationCache(
        rows_NSR=rows,
        place_of={(level, 0): level for level in range(_LEVELS)},
        device=device,
    )


def measure(
    way: str, geometry: Geometry, device: torch.device, options: argparse.Namespace, flops: int, rate: float
) -> dict[str, float]:
    """Return the figures of one way."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch._dynamo.reset()
    step = Step(way, geometry, device)
    with step.kernels():
        micro = median_seconds(step.micro_step, options.runs, device)
        whole = median_seconds(lambda: step.optimizer_step(options.accumulation), options.runs, device)
    label = f"{'' if way in WAYS[:2] else '+ '}{way}"
    figures = {
        f"{label}: micro-step [s]": micro,
        f"{label}: optimizer step [s]": whole,
        f"{label}: speed [TFLOP/s]": flops / micro / 1e12,
        f"{label}: share of the matrix multiplication's rate": flops / micro / rate,
        f"{label}: checkpointed blocks": float(step.checkpointed),
    }
    if device.type == "cuda":
        figures[f"{label}: peak memory [GiB]"] = torch.cuda.max_memory_allocated(device) / 2**30
    return figures


def median_seconds(action: Callable[[], object], runs: int, device: torch.device) -> float:
    times = []
    for _ in range(runs + _WARM_UP):
        begin = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[_WARM_UP:])


def count_flops(geometry: Geometry) -> int:
    """Return the FLOPs of one forward and backward pass, counted on the meta device."""
    meta = torch.device("meta")
    model = make_transformer(geometry, meta)
    model.requires_grad_(False)
    # As with an adapter in the first block: gradients flow through all blocks, but not to frozen weights.
    latents = torch.empty(
        1, 16, geometry.side, geometry.side, dtype=torch.bfloat16, device=meta, requires_grad=True
    )
    sequence = torch.empty(
        1, geometry.text_tokens, geometry.context_width, dtype=torch.bfloat16, device=meta, requires_grad=True
    )
    with FlopCounterMode(display=False) as counter:
        output: Tensor = model(
            hidden_states=latents,
            encoder_hidden_states=sequence,
            pooled_projections=torch.empty(1, _POOLED_WIDTH, dtype=torch.bfloat16, device=meta),
            timestep=torch.empty(1, device=meta),
            return_dict=False,
        )[0]
        torch.autograd.backward(output.sum())
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device) -> float:
    """Return the FLOP/s of the device's bf16 matrix multiplication."""
    side = 8192 if device.type == "cuda" else 1024
    left, right, product = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(3))
    return 2 * side**3 / median_seconds(lambda: torch.mm(left, right, out=product), 10, device)


if __name__ == "__main__":
    main()
