"""Rectified flow: sigma tables, the draw of timesteps, noising, and the loss, all in fp32.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
arXiv:2403.03206, sections 2 and 3. Sigmas in bf16 would have 355 distinct values out of 1000.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True)
class SigmaTable:
    """The noise levels of a scheduler, (T,), highest first; the transformer is told `timesteps`."""

    timesteps: Tensor
    sigmas: Tensor

    @classmethod
    def read(cls, model: BaseModel) -> "SigmaTable":
        """Read the noise levels of the model's scheduler, without the final zero."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(model.folder / "scheduler")
        timesteps = scheduler.timesteps.float()
        return cls(timesteps=timesteps, sigmas=scheduler.sigmas[: len(timesteps)].float())

    def __len__(self) -> int:
        return len(self.timesteps)


def draw_timestep_index(config: TuningConfig, sample: rng.Sample, level_count: int) -> int:
    """Return the row of the sigma table for `sample`, drawn by the weighting scheme (section 3.1)."""
    generator = rng.generator(config.seed, sample.purpose("timestep"), sample.index, sample.stem)
    if config.weighting_scheme == "logit_normal":
        logit = config.logit_mean + config.logit_std * float(generator.standard_normal())
        place = 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))
    else:
        place = float(generator.random())
    if config.weighting_scheme == "mode":
        place = 1 - place - config.mode_scale * (math.cos(math.pi * place / 2) ** 2 - 1 + place)
    return max(0, min(int(place * level_count), level_count - 1))


def add_noise(latents_BCHW: Tensor, noise_BCHW: Tensor, sigmas_B: Tensor) -> Tensor:
    """Return the point at sigma on the straight line from the latents (0) to the noise (1)."""
    sigmas_B111 = sigmas_B.view(-1, 1, 1, 1)
    return (1 - sigmas_B111) * latents_BCHW + sigmas_B111 * noise_BCHW


def loss_weights(scheme: str, sigmas_B: Tensor) -> Tensor:
    """Return the weight of each sample's loss, of shape (B,) (section 3.1).

    sigma_sqrt weighs by 1 / sigma^2, cosmap by the density 2 / (pi (1 - 2 sigma + 2 sigma^2)); the schemes
    that draw timesteps unevenly weigh all alike.
    """
    if scheme == "sigma_sqrt":
        return sigmas_B**-2.0
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigmas_B + 2 * sigmas_B**2))
    return torch.ones_like(sigmas_B)


def flow_loss(
    prediction_BCHW: Tensor,
    latents_BCHW: Tensor,
    noise_BCHW: Tensor,
    sigmas_B: Tensor,
    *,
    scheme: str,
    precondition_outputs: bool,
) -> Tensor:
    """Return the weighted mean squared error of a predicted velocity, a scalar in fp32.

    With `precondition_outputs` the latents that it implies are compared with the latents: each sample's loss
    times sigma squared.
    """
    prediction_BCHW = prediction_BCHW.float()
    if precondition_outputs:
        noisy_BCHW = add_noise(latents_BCHW, noise_BCHW, sigmas_B)
        prediction_BCHW = noisy_BCHW - sigmas_B.view(-1, 1, 1, 1) * prediction_BCHW
        target_BCHW = latents_BCHW
    else:
        target_BCHW = noise_BCHW - latents_BCHW
    errors_B = (prediction_BCHW - target_BCHW).square().flatten(1).mean(1)
    return (loss_weights(scheme, sigmas_B) * errors_B).mean()
