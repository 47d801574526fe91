"""Transformers of random weights, adapters for them, and what goes into them."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch import Tensor

from benchmarks.random_pipeline import draw_weights
from mimicry.tuning.adapters.weights import lora_arguments
from mimicry.tuning.hf_diffusers.sd3.modulation import CachedModulationTransformer, ModulationCache
from mimicry.tuning.hf_diffusers.spec.lora_modules import TARGET_MODULES
from mimicry.tuning.options.config import TuningConfig

POOLED_WIDTH = 2048
# Of each timestep and prompt; a long run has more of them, and takes its rows in the same way.
_ROWS = 64


@dataclass(frozen=True)
class Geometry:
    """Sizes of the transformer and its input.

    `side` is the width of the latents, `positions` that of the position embeddings, in tokens. The first
    `dual` blocks have two attentions, as in Stable Diffusion 3.5 Medium.
    """

    blocks: int
    heads: int
    context_width: int
    side: int
    text_tokens: int
    positions: int
    dual: int = 0

    @property
    def width(self) -> int:
        return 64 * self.heads

    @property
    def tokens(self) -> int:
        """The tokens of a sample, of image and prompt."""
        return (self.side // 2) ** 2 + self.text_tokens


GEOMETRIES = {
    "large": Geometry(blocks=38, heads=38, context_width=4096, side=128, text_tokens=154, positions=192),
    "small": Geometry(blocks=4, heads=4, context_width=256, side=16, text_tokens=32, positions=8),
}


def make_transformer(geometry: Geometry, device: torch.device, kind: Any = SD3Transformer2DModel) -> Any:
    """Return a transformer of random weights in bf16, made on the device; the same for every call."""
    # Only numbers that no weight file has are made by the constructor.
    with init_empty_weights(include_buffers=False):
        model = kind(
            sample_size=geometry.side,
            num_layers=geometry.blocks,
            num_attention_heads=geometry.heads,
            attention_head_dim=64,
            joint_attention_dim=geometry.context_width,
            caption_projection_dim=geometry.width,
            pooled_projection_dim=POOLED_WIDTH,
            pos_embed_max_size=1,
            qk_norm="rms_norm",
            dual_attention_layers=tuple(range(geometry.dual)),
        )
    torch.manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        weights = draw_weights(name, parameter.shape, device)
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(weights, requires_grad=False))
    # Sines and cosines of all positions would take seconds, and random numbers do as well.
    shape = (1, geometry.positions**2, geometry.width)
    model.pos_embed.pos_embed_max_size = geometry.positions
    model.pos_embed.pos_embed = torch.randn(shape, dtype=torch.bfloat16, device=device)
    return model.to(device).train()


def add_peft_adapter(transformer: Any, config: TuningConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Freeze the transformer, put an adapter of peft's own layers on, and return its parameters by name."""
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(**lora_arguments(config.rank, TARGET_MODULES)))
    parameters = {name: value for name, value in transformer.named_parameters() if value.requires_grad}
    for parameter in parameters.values():
        parameter.data = parameter.data.to(dtype)
    return parameters


def draw_adapter(parameters: dict[str, Any]) -> None:
    """Give an adapter random numbers, as if it had been trained: a new one's gradients are half zeros."""
    generator = torch.Generator().manual_seed(1)
    for name in sorted(parameters):
        parameter = parameters[name]
        spread = 0.02 if ".lora_B." in name else 1 / parameter.shape[0]
        numbers = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(numbers * spread)


def make_rows(transformer: CachedModulationTransformer, device: torch.device) -> ModulationCache:
    """Return a conditioning table for timesteps 0 to 63 of the first prompt, of random numbers."""
    width = sum(len(layer.columns) for layer in transformer.replaced_layers().values())
    rows = torch.randn(_ROWS, 1, width, generator=torch.Generator().manual_seed(2)).bfloat16()
    return ModulationCache(
        rows_NSR=rows,
        place_of={(level, 0): level for level in range(_ROWS)},
        device=device,
    )


@dataclass(frozen=True)
class Batch:
    """What a transformer is trained on: latents and noise (B, 16, H, W) in fp32, prompts in bf16."""

    latents: Tensor
    noise: Tensor
    sequence: Tensor
    pooled: Tensor

    @classmethod
    def draw(cls, geometry: Geometry, device: torch.device, count: int) -> "Batch":
        generator = torch.Generator().manual_seed(3)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator).to(device)

        return cls(
            latents=drawn(16, geometry.side, geometry.side),
            noise=drawn(16, geometry.side, geometry.side),
            sequence=drawn(geometry.text_tokens, geometry.context_width).bfloat16(),
            pooled=drawn(POOLED_WIDTH).bfloat16(),
        )
