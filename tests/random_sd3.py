"""A tiny pipeline with random weights, made in a second: what the trainer is tested on.

It is smaller than the trained one, and its scheduler is that of the real model. Its samples are noise.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mimicry.demo.paintings import generator
from tools.demo_weights.tiny_sd3 import Geometry, new_models, write_pipeline

GEOMETRY = Geometry(
    transformer_layers=3,
    head_width=24,
    largest_pixels=384,
    vae_channels=(16, 24, 32),
    vae_layers=2,
    vae_norm_groups=8,
    clip_length=77,
    scheduler_shift=3.0,
)
# Mean and reciprocal standard deviation of the latents of drawn paintings, seed 7.
SHIFT_FACTOR, SCALING_FACTOR = 0.09, 1.69


def write_random_sd3(folder: Path, seed: int = 7) -> None:
    """Write the pipeline into `folder`, which must not exist: same seed and libraries, same bytes."""
    models = new_models(GEOMETRY)
    for component, model in models.items():
        _draw_weights(model, component, seed)
    models["vae"].register_to_config(shift_factor=SHIFT_FACTOR, scaling_factor=SCALING_FACTOR)
    write_pipeline(models, folder, GEOMETRY)


def _draw_weights(model: Any, component: str, seed: int) -> None:
    """Set every parameter of `model` to numbers drawn for its name; torch's own differ from CPU to CPU."""
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            rng = generator(seed, "weights", component, module_name, name)
            centre, spread = _centre_and_spread(module_name, name, tuple(parameter.shape))
            if isinstance(module, torch.nn.Embedding):
                spread = 1.0
            values = centre + spread * rng.standard_normal(tuple(parameter.shape))
            if (component, module_name) == ("vae", "encoder.conv_out"):
                values = _confident_posterior(values, name)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def _centre_and_spread(module_name: str, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation that keep activations near unit scale from layer to layer."""
    if name == "bias":
        return 0.0, 0.02
    if len(shape) == 1:  # the gain of a norm
        return 1.0, 0.1
    spread = float(np.prod(shape[1:])) ** -0.5
    if module_name.endswith("SelfAttention.q"):
        # T5 does not divide its attention scores by the root of the head's width.
        return 0.0, spread / GEOMETRY.t5_head_width**0.5
    return 0.0, spread


def _confident_posterior(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the VAE's last encoder weights with the half that says log variance made small and near -4.

    A trained VAE is nearly sure of its latents; an unsure one would drown the paintings in noise.
    """
    values = values.copy()
    values[len(values) // 2 :] *= 0.1
    if name == "bias":
        values[len(values) // 2 :] -= 4.0
    return values
