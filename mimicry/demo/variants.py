"""Miniatures of Mist and of noisy upscaling, made with the tiny model's own VAE and a small upscaler.

They work only on the model of the demo, and are no evidence about the real methods.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mimicry.demo.paintings import Rng

SCALE = 2
_WIDTH = 32
# Dilation of each layer; together they see about thirty pixels.
_DILATIONS = (1, 2, 4, 4, 2, 1)


class Upscaler(nn.Module):
    """Maps noisy pixels (B, 3, H, W), 0 to 1, to clean ones (B, 3, 2H, 2W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, _WIDTH, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=step, dilation=step) for step in _DILATIONS
        )
        self.last = nn.Conv2d(_WIDTH, 3 * SCALE**2, 3, padding=1)

    def forward(self, noisy_BIHW: Tensor) -> Tensor:
        """Return the enlarged picture: bilinear enlargement plus what the network adds."""
        features_BCHW = self.first(noisy_BIHW)
        for layer in self.layers:
            features_BCHW = features_BCHW + layer(nn.functional.silu(features_BCHW))
        added = nn.functional.pixel_shuffle(self.last(nn.functional.silu(features_BCHW)), SCALE)
        enlarged: Tensor = nn.functional.interpolate(
            noisy_BIHW, scale_factor=SCALE, mode="bilinear", align_corners=False
        )
        return enlarged + added


def load_upscaler(path: Path) -> Upscaler:
    from safetensors.torch import load_file

    upscaler = Upscaler()
    upscaler.load_state_dict({name: values.float() for name, values in load_file(path).items()})
    return upscaler.eval()


_WEIGHTS = Path(__file__).parent / "weights"
# A complete pipeline of Stable Diffusion 3, only small, and the network of noisy upscaling.
TINY_SD3, UPSCALER = _WEIGHTS / "tiny_sd3", _WEIGHTS / "upscaler.safetensors"


# L-infinity bound of the perturbation, of 255; half of Mist's usual one. Faintly visible where a picture is
# smooth and dark, and hardly elsewhere.
MIST_BOUND = 8

_STEPS, _STEP_SIZE, _MOMENTUM = 8, 2.0, 0.8
# The target of the latents: steep stripes, which no painter uses. Their number in a square picture, and their
# angle in radians. Their position is the same in every picture, like Mist's single target image. Among the
# patterns that were tried, these change the latents most: a stripe is half as wide as a latent pixel.
_STRIPES, _STRIPE_SLANT = 16.0, 0.35
# Standard deviation of the noise, of 1; it must hide the perturbation.
_NOISE = 0.1


@dataclass(frozen=True)
class VariantMaker:
    vae: Any
    upscaler: Upscaler

    @classmethod
    def load(cls) -> "VariantMaker":
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(TINY_SD3, subfolder="vae", torch_dtype=torch.float32).eval()
        return cls(vae.requires_grad_(False), load_upscaler(UPSCALER))

    def mist(self, painting: Image.Image) -> Image.Image:
        """Return the RGB `painting`, changed by at most MIST_BOUND of 255 to give it the latents of stripes.

        Projected gradient descent with momentum on the pixels, as in Mist's textural loss: Liang and Wu 2023,
        arXiv:2305.12683. The size stays the same.
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
            # The sum must be a valid colour.
            lowest, highest = -255 * painted_1IHW, 255 * (1 - painted_1IHW)
            change_1IHW = moved_1IHW.clamp(-MIST_BOUND, MIST_BOUND).clamp(lowest, highest)
        return _to_image(painted_1IHW + change_1IHW.round() / 255)

    @torch.no_grad()
    def noisy_upscaling(self, image: Image.Image, rng: Rng) -> Image.Image:
        """Return `image` at twice its size, noised and cleaned (Hönig et al. 2024, arXiv:2406.12027)."""
        pixels_1IHW = to_tensor(image)
        noise_1IHW = torch.from_numpy(rng.standard_normal(pixels_1IHW.shape, dtype=np.float32))
        return _to_image(self.upscaler((pixels_1IHW + _NOISE * noise_1IHW).clamp(0, 1)))

    def encode(self, pixels_BIHW: Tensor) -> Tensor:
        """Return the means of the posteriors of pixels in 0 to 1."""
        latents_BCHW: Tensor = self.vae.encode(2 * pixels_BIHW - 1).latent_dist.mean
        return latents_BCHW


def stripes(height: int, width: int) -> Tensor:
    """Return the black and white target (1, 3, H, W); its centre square is the same for all pictures."""
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
