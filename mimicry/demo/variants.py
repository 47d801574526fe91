"""Miniatures of Mist and of noisy upscaling, made with the tiny model's own VAE and a small upscaler.

They work as the methods do, at the size of the demo, and on its own model only. What they show about it is no
evidence about the real methods.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mimicry.demo.chance import Rng
from mimicry.demo.tiny_sd3 import UPSCALER, WEIGHTS
from mimicry.demo.upscaler import Upscaler, load_upscaler

# L-infinity bound of the perturbation in steps of 255, half of what Mist is mostly used with: faint where a
# picture is smooth and dark, hardly seen elsewhere.
MIST_BOUND = 8

_STEPS, _STEP_SIZE, _MOMENTUM = 8, 2.0, 0.8
# The target of the latents: steep stripes, as no painter has them. How many in a square picture, and radians.
# They lie in the same places of every picture, whatever its size, as Mist's one target image does. Of all
# patterns tried, these fine ones move the latents most: each is half as wide as what a latent sees.
_STRIPES, _STRIPE_SLANT = 16.0, 0.35
# Standard deviation of the noise, of 1: it has to drown the perturbation.
_NOISE = 0.1


@dataclass(frozen=True)
class VariantMaker:
    """Makes the protected and the countered picture of a painting."""

    vae: Any
    upscaler: Upscaler

    @classmethod
    def load(cls) -> "VariantMaker":
        """Read the models from this package's own files."""
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae", torch_dtype=torch.float32).eval()
        return cls(vae.requires_grad_(False), load_upscaler(UPSCALER))

    def mist(self, painting: Image.Image) -> Image.Image:
        """Return the RGB `painting` changed by at most MIST_BOUND of 255 so that its latents say stripes.

        Projected gradient descent with momentum on the pixels, as in Mist's textural loss: Liang and Wu 2023,
        arXiv:2305.12683. Size and framing stay.
        """
        painted_1IHW = to_tensor(painting)
        target_1CHW = self.encode(stripes(painting.height, painting.width))
        change_1IHW = torch.zeros_like(painted_1IHW)
        momentum_1IHW = torch.zeros_like(painted_1IHW)
        for _ in range(_STEPS):
            change_1IHW.requires_grad_(True)
            distance = nn.functional.mse_loss(self.encode(painted_1IHW + change_1IHW / 255), target_1CHW)
            (slope_1IHW,) = torch.autograd.grad(distance, change_1IHW)
            momentum_1IHW = _MOMENTUM * momentum_1IHW + slope_1IHW / slope_1IHW.abs().mean()
            moved_1IHW = change_1IHW.detach() - _STEP_SIZE * momentum_1IHW.sign()
            # What is added must leave colours that exist.
            lowest, highest = -255 * painted_1IHW, 255 * (1 - painted_1IHW)
            change_1IHW = moved_1IHW.clamp(-MIST_BOUND, MIST_BOUND).clamp(lowest, highest)
        return _to_image(painted_1IHW + change_1IHW.round() / 255)

    @torch.no_grad()
    def noisy_upscaling(self, image: Image.Image, rng: Rng) -> Image.Image:
        """Return the RGB `image` at twice its size, drowned in noise and restored by the upscaler.

        As Hönig et al. 2024 do it with a large one, arXiv:2406.12027.
        """
        pixels_1IHW = to_tensor(image)
        noise_1IHW = torch.from_numpy(rng.standard_normal(pixels_1IHW.shape, dtype=np.float32))
        return _to_image(self.upscaler((pixels_1IHW + _NOISE * noise_1IHW).clamp(0, 1)))

    def encode(self, pixels_BIHW: Tensor) -> Tensor:
        """Return the means of the posteriors of pixels from 0 to 1."""
        latents_BCHW: Tensor = self.vae.encode(2 * pixels_BIHW - 1).latent_dist.mean
        return latents_BCHW


def stripes(height: int, width: int) -> Tensor:
    """Return the target (1, 3, H, W), black and white: the same for all pictures in their centre square."""
    rows, columns = np.mgrid[:height, :width]
    across, down = columns + 0.5 - width / 2, rows + 0.5 - height / 2
    along = (across * np.cos(_STRIPE_SLANT) + down * np.sin(_STRIPE_SLANT)) / min(height, width)
    wave = np.where(np.sin(2 * np.pi * _STRIPES * along) > 0, 1.0, 0.0)
    return torch.from_numpy(np.broadcast_to(wave, (1, 3, height, width)).astype(np.float32))


def to_tensor(image: Image.Image) -> Tensor:
    """Return `image` as (1, 3, H, W), from 0 to 1."""
    return (
        torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1).unsqueeze(0).contiguous()
    )


def _to_image(pixels_1IHW: Tensor) -> Image.Image:
    values_HWI = (pixels_1IHW[0].clamp(0, 1) * 255).round().permute(1, 2, 0)
    return Image.fromarray(values_HWI.numpy().astype(np.uint8))
