"""Two blocks of the real transformer's width, with random weights, and one forward and backward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.modulation import (
    CachedModulationTransformer,
    WeightFiles,
    compute_modulation,
)
from mimicry.tuning.hf_diffusers.sd3.transformer import use_fused_layers
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import draw_lora_b

CPU = torch.device("cpu")
POOLED_WIDTH = 2048
# What the scheduler of Stable Diffusion 3 has, with its shift of 3.
TIMESTEPS = torch.tensor([3000 * i / (1000 + 2 * i) for i in range(1000, 0, -1)])


def write_transformer(folder: Path, *, width: int, block_count: int, dual: Sequence[int]) -> None:
    """Save a transformer in bf16 whose every kind of adaptive norm is as wide as asked."""
    torch.manual_seed(5)
    head_count = width // 64
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = SD3Transformer2DModel(
            sample_size=8,
            num_layers=block_count,
            num_attention_heads=head_count,
            attention_head_dim=64,
            joint_attention_dim=128,
            caption_projection_dim=width,
            pooled_projection_dim=POOLED_WIDTH,
            pos_embed_max_size=8,
            dual_attention_layers=tuple(dual),
            qk_norm="rms_norm",
        )
    finally:
        torch.set_default_dtype(previous)
    model.save_pretrained(folder)


class Passes:
    """The same batch through the transformer in `folder`, with and without a table."""

    def __init__(self, folder: Path, levels: Sequence[int], prompts: Sequence[int] | None = None) -> None:
        """Make a batch at these rows of `TIMESTEPS`, with these prompts, by default all with one."""
        generator = torch.Generator().manual_seed(9)
        count = len(levels)
        self.folder, self.levels = folder, levels
        self.prompts = list(prompts or [0] * count)
        self.latents = torch.randn(count, 16, 4, 4, generator=generator).bfloat16()
        number = max(self.prompts) + 1
        self.sequence = torch.randn(number, 4, 128, generator=generator).bfloat16()[self.prompts]
        self.pooled = torch.randn(number, POOLED_WIDTH, generator=generator).bfloat16()

    def untabled(self) -> dict[str, Tensor]:
        model: Any = SD3Transformer2DModel.from_pretrained(self.folder, torch_dtype=torch.bfloat16)
        return self.run(model, self.pooled[self.prompts])

    def tabled(self) -> dict[str, Tensor]:
        model: Any = CachedModulationTransformer.from_pretrained(self.folder, torch_dtype=torch.bfloat16)
        weights = WeightFiles.find(self.folder, None)
        assert weights is not None
        table = compute_modulation(
            model,
            weights,
            timesteps_T=TIMESTEPS,
            pooled_NP=self.pooled,
            keys=set(zip(self.levels, self.prompts, strict=True)),
            batch_size=len(self.levels),
        )
        return self.run(model, table.rows(self.levels, self.prompts))

    def run(self, model: Any, pooled_projections: Tensor) -> dict[str, Tensor]:
        """Return output, loss and the gradients of an adapter that is no longer at its beginning."""
        use_fused_layers(model)
        parameters = add_adapter(model, TuningConfig(rank=4))
        draw_lora_b(parameters)
        output = model(
            hidden_states=self.latents,
            encoder_hidden_states=self.sequence,
            pooled_projections=pooled_projections,
            timestep=TIMESTEPS[list(self.levels)],
            return_dict=False,
        )[0]
        loss = output.float().square().mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found = {name: value for name, value in zip(parameters, gradients, strict=True) if value is not None}
        return {"output": output, "loss": loss, **found}
