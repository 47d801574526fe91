"""Imitations of a protection and of a countermeasure, so that the demo has every kind of folder.

No model takes part. `imitate_mist` lays a bounded pattern of fine stripes over a painting, as the real Mist
leaves one behind; it was not made to mislead anything, and `imitate_noisy_upscaling` is no trained upscaler.
What a LoRA learns from either is no evidence about the real methods.
"""

import numpy as np
from PIL import Image, ImageFilter

from mimicry.demo.chance import Rng

# L-infinity bound of the pattern in steps of 255: the strength with which Mist is mostly used.
MIST_BOUND = 16

_WAVE_LENGTHS_PIXELS = (3.1, 4.3, 6.1)
_WAVE_DIRECTIONS_RADIANS = (0.35, 1.25, 2.4)


def imitate_mist(painting: Image.Image, rng: Rng) -> Image.Image:
    """Return the RGB `painting` with fine crossed stripes, at most MIST_BOUND of 255 in any channel.

    Size and framing stay. The stripes are the same for every painting but for their phase.
    """
    pixels = np.asarray(painting, dtype=np.float64)
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    waves = np.zeros_like(pixels)
    for length, direction in zip(_WAVE_LENGTHS_PIXELS, _WAVE_DIRECTIONS_RADIANS, strict=True):
        along = columns * np.cos(direction) + rows * np.sin(direction)
        phases = rng.uniform(0, 2 * np.pi, 3)
        waves += np.sin(2 * np.pi * along[..., None] / length + phases)
    pattern = np.round(np.tanh(1.5 * waves) * MIST_BOUND)
    return Image.fromarray(np.clip(pixels + pattern, 0, 255).astype(np.uint8))


def imitate_noisy_upscaling(image: Image.Image, rng: Rng) -> Image.Image:
    """Return the RGB `image` a quarter larger, after Gaussian noise, halving and light smoothing."""
    pixels = np.asarray(image, dtype=np.float64)
    noisy = np.clip(pixels + rng.normal(0, 0.04 * 255, pixels.shape), 0, 255).astype(np.uint8)
    width, height = image.size
    small = Image.fromarray(noisy).resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BOX)
    large = small.resize((round(width * 1.25), round(height * 1.25)), Image.Resampling.LANCZOS)
    return large.filter(ImageFilter.GaussianBlur(0.9))
