"""Images out of the transformer: Euler steps along the flow, with classifier-free guidance.

Source: Ho and Salimans 2022, arXiv:2207.12598. Latents stay in fp32 from the noise to the image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor

from mimicry.study.drawn_images import DEFAULT_GUIDANCE, DEFAULT_STEPS
from mimicry.tuning.hf_diffusers.sd3.modulation import ModulationCache
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.transformer import cache_modulation
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.options.config import TuningConfig

# What the transformer takes as pooled projections, of shape (1, width), for a step counted from 0 and for a
# prompt: PROMPT or NEGATIVE. Rows of a conditioning table, or else the pooled prompt.
StepModulation = Callable[[int, int], Tensor]
PROMPT, NEGATIVE = 0, 1
NEGATIVE_PROMPT = ""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How an image of `resolution` pixels a side is drawn; `guidance` 1 leaves the negative prompt out."""

    resolution: int = 1024
    steps: int = DEFAULT_STEPS
    guidance: float = DEFAULT_GUIDANCE


def latent_shape(model: BaseModel, resolution: int) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the latents of a square image of `resolution` pixels."""
    side = resolution // 2 ** (len(model.config_of("vae")["block_out_channels"]) - 1)
    return int(model.config_of("transformer")["in_channels"]), side, side


def initial_noise(seed: int, purpose: str, index: int, name: str, shape: tuple[int, int, int]) -> Tensor:
    """Return the noise that an image begins with, of shape (1, C, H, W) in fp32 on the CPU; see `rng`."""
    return torch.from_numpy(rng.normal(seed, purpose, index, name, shape)).unsqueeze(0)


def sampling_timesteps(scheduler_dir: Path, steps: int) -> Tensor:
    """Return what the transformer is told at each step, of shape (steps,) in fp32; not those of training."""
    timesteps: Tensor = _scheduler(scheduler_dir, steps).timesteps.float()
    return timesteps


@torch.no_grad()
def sample_latents(
    transformer: SD3Transformer2DModel,
    scheduler_dir: Path,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    noise_BCHW: Tensor,
    settings: SamplingSettings,
    modulation: StepModulation | None = None,
) -> Tensor:
    """Return the latents that the flow leads to, of shape (B, C, H, W) in fp32.

    Prompt and negative prompt go through the transformer one after the other: that takes half the memory of
    doing both at once, and hardly more time, since one image keeps a GPU busy.

    Args:
        transformer: in evaluation mode, with or without an active adapter.
        prompt: of all images, on the transformer's device and in its precision.
        negative: likewise; not read at guidance 1.
        noise_BCHW: see `initial_noise`.
        modulation: what a `CachedModulationTransformer` takes in place of pooled prompts.
    """
    prompts = (prompt, negative)
    device, dtype = prompt.sequence_1LD.device, prompt.sequence_1LD.dtype
    scheduler = _scheduler(scheduler_dir, settings.steps, device)
    latents_BCHW = noise_BCHW.to(device, torch.float32)
    count = len(latents_BCHW)

    def velocity(step: int, which: int) -> Tensor:
        embeds = prompts[which]
        pooled_1P = embeds.pooled_1P if modulation is None else modulation(step, which)
        predicted_BCHW: Tensor = transformer(
            hidden_states=latents_BCHW.to(dtype),
            encoder_hidden_states=embeds.sequence_1LD.expand(count, -1, -1),
            pooled_projections=pooled_1P.expand(count, -1),
            timestep=scheduler.timesteps[step].expand(count),
            return_dict=False,
        )[0]
        return predicted_BCHW.float()

    for step, timestep in enumerate(scheduler.timesteps):
        velocity_BCHW = velocity(step, PROMPT)
        if settings.guidance != 1:
            away_BCHW = velocity(step, NEGATIVE)
            velocity_BCHW = away_BCHW + settings.guidance * (velocity_BCHW - away_BCHW)
        latents_BCHW = scheduler.step(velocity_BCHW, timestep, latents_BCHW, return_dict=False)[0]
    return latents_BCHW


def _scheduler(
    folder: Path, steps: int, device: torch.device | None = None
) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def sampling_modulation(
    transformer: SD3Transformer2DModel,
    model: BaseModel,
    config: TuningConfig,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    *,
    steps: int,
    batch_size: int,
) -> StepModulation | None:
    """Return the only one of `sampling_modulations`, for one prompt."""
    made = sampling_modulations(
        transformer, model, config, [prompt, negative], negative=1, steps=steps, batch_size=batch_size
    )
    return made[0] if made else None


def sampling_modulations(
    transformer: SD3Transformer2DModel,
    model: BaseModel,
    config: TuningConfig,
    prompts: Sequence[PromptEmbeds],
    *,
    negative: int,
    steps: int,
    batch_size: int,
) -> list[StepModulation] | None:
    """Return for each of `prompts` what a `CachedModulationTransformer` takes instead of pooled prompts.

    They share a cache of `steps` rows a prompt, whose timesteps are not those of training; `negative` is the
    place of the negative prompt. Return None for a transformer that needs no cache.
    """
    cache = cache_modulation(
        transformer,
        model,
        config,
        timesteps_T=sampling_timesteps(model.folder / "scheduler", steps),
        pooled_NP=torch.cat([prompt.pooled_1P for prompt in prompts]),
        keys=list(product(range(steps), range(len(prompts)))),
        batch_size=batch_size,
    )
    if cache is None:
        return None
    return [partial(_row, cache, {PROMPT: index, NEGATIVE: negative}) for index in range(len(prompts))]


def _row(cache: ModulationCache, prompt_indices: Mapping[int, int], step: int, which: int) -> Tensor:
    return cache.rows([step], [prompt_indices[which]])
