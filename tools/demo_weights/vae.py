"""Trains the VAE to reconstruct paintings with their lines, from latents that a model can learn."""

from typing import Any

import torch
from torch import Tensor, nn

from mimicry.demo.paintings import generator
from tools.demo_weights.loop import LossOf
from tools.demo_weights.training_set import Images, recoloured

_BATCH = 4
_EDGE_WEIGHT, _KL_WEIGHT = 1.0, 5e-4


def as_pixels(images_NHWI: Images, device: str) -> Tensor:
    """Return bytes (N, H, W, 3) as pixels (N, 3, H, W) from -1 to 1, channels last in memory."""
    pixels_NIHW = torch.from_numpy(images_NHWI).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels_NIHW.contiguous(memory_format=torch.channels_last)


def vae_loss(vae: Any, images_NHWI: Images, seed: int, device: str) -> LossOf:
    """Return the loss: absolute error of pixels and of their differences, and KL divergence of latents."""
    vae.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(seed, "vae_batch", step)
        chosen_BHWI = images_NHWI[rng.integers(len(images_NHWI), size=_BATCH)]
        mirrored_B = rng.random(_BATCH) < 0.5
        chosen_BHWI[mirrored_B] = chosen_BHWI[mirrored_B, :, ::-1]
        pixels_BIHW = as_pixels(recoloured(chosen_BHWI, rng), device)
        sampling_rng = torch.Generator(device).manual_seed(seed + step)
        posterior = vae.encode(pixels_BIHW).latent_dist
        decoded_BIHW = vae.decode(posterior.sample(sampling_rng)).sample
        error = nn.functional.l1_loss(decoded_BIHW, pixels_BIHW)
        edges = _edge_error(decoded_BIHW - pixels_BIHW)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = error + _EDGE_WEIGHT * edges + _KL_WEIGHT * kl
        return loss, {"l1": float(error.detach()), "edges": float(edges.detach()), "kl": float(kl.detach())}

    return loss_of


def _edge_error(difference_BIHW: Tensor) -> Tensor:
    """Return the mean absolute error of the differences between neighbouring pixels, as thin lines have."""
    return difference_BIHW.diff(dim=-1).abs().mean() + difference_BIHW.diff(dim=-2).abs().mean()
