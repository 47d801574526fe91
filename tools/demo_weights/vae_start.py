"""Initializes the VAE: its encoder starts as a cosine transform of blocks of pixels, as in JPEG.

From random weights, a small VAE needs thousands of steps to find out that there are colours. Here its latents
start as the coarsest patterns of brightness and colour of each block of 4 x 4 pixels. Every residual branch
starts at zero. Training can change all weights.
"""

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_BLOCK = 4
# Brightness, and two differences of colours.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [0.5, -1, 0.5]]) / np.sqrt(np.array([[3], [2], [1.5]]))
# How many patterns of each the encoder keeps, and how many of them become latents.
_CARRIED, _KEPT = (16, 8, 8), (8, 4, 4)
_LOG_VARIANCE = -4.0


@torch.no_grad()
def start_as_cosine_transform(vae: Any, pixels_NIHW: Tensor) -> None:
    """Set the weights of `vae`, so that the latents of the paintings `pixels_NIHW` have unit scale."""
    for name, module in vae.named_modules():
        if name.endswith("conv2"):  # the end of a residual branch
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    encoder = vae.encoder
    halving, shortcut = (
        encoder.down_blocks[0].downsamplers[0].conv,
        encoder.down_blocks[1].resnets[0].conv_shortcut,
    )
    for convolution in (encoder.conv_in, halving, shortcut, encoder.conv_out):
        nn.init.zeros_(convolution.bias)
    for colour in range(3):
        encoder.conv_in.weight[colour] = 0
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
        for down, across in product(range(2), repeat=2):
            _connect(halving, colour * 4 + down * 2 + across, colour, down, across)
    for channel in range(12):
        _connect(shortcut, channel, channel)
    _start_of_second_halving(encoder)
    _start_of_outlet(encoder)
    latents_NCHW = vae.encode(pixels_NIHW).latent_dist.mean
    means_C, deviations_C = latents_NCHW.mean(dim=(0, 2, 3)), latents_NCHW.std(dim=(0, 2, 3))
    count = len(means_C)
    encoder.conv_out.weight[:count] /= deviations_C.view(-1, 1, 1, 1)
    encoder.conv_out.bias[:count] = -means_C / deviations_C


def _start_of_second_halving(encoder: Any) -> None:
    convolution = encoder.down_blocks[1].downsamplers[0].conv
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    for row, pattern in enumerate(patterns()):
        for colour, y, x in product(range(3), range(_BLOCK), range(_BLOCK)):
            channel = colour * 4 + (y % 2) * 2 + x % 2
            convolution.weight[row, channel, y // 2, x // 2] = float(pattern[colour, y, x])


def _start_of_outlet(encoder: Any) -> None:
    """Pass each pattern through norm and SiLU as a pair: silu(x) - silu(-x) = x."""
    shortcut, outlet = encoder.down_blocks[2].resnets[0].conv_shortcut, encoder.conv_out
    nn.init.zeros_(shortcut.weight)
    nn.init.zeros_(shortcut.bias)
    nn.init.zeros_(outlet.weight)
    for pattern in range(sum(_CARRIED)):
        shortcut.weight[2 * pattern, pattern] = 1
        shortcut.weight[2 * pattern + 1, pattern] = -1
    starts = np.cumsum((0, *_CARRIED))
    kept = [start + place for start, count in zip(starts, _KEPT, strict=False) for place in range(count)]
    for latent, pattern in enumerate(kept):
        outlet.weight[latent, 2 * pattern, 1, 1] = 1
        outlet.weight[latent, 2 * pattern + 1, 1, 1] = -1
    outlet.bias[len(kept) :] = _LOG_VARIANCE


def _connect(convolution: Any, output: int, channel: int, down: int = 0, across: int = 0) -> None:
    convolution.weight[output] = 0
    convolution.weight[output, channel, down, across] = 1


def patterns() -> list[NDArray[np.float64]]:
    """Return the patterns, each of shape (3, 4, 4), coarsest first for each row of _COLOURS."""
    places = (np.arange(_BLOCK) + 0.5) * np.pi / _BLOCK
    waves = [np.cos(frequency * places) for frequency in range(_BLOCK)]
    orders = sorted(product(range(_BLOCK), repeat=2), key=lambda pair: (sum(pair), max(pair), pair))
    blocks = [np.outer(waves[down], waves[across]) for down, across in orders]
    blocks = [block / np.linalg.norm(block) for block in blocks]
    return [
        colour[:, None, None] * block
        for colour, count in zip(_COLOURS, _CARRIED, strict=True)
        for block in blocks[:count]
    ]
