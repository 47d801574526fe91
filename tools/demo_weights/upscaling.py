"""Trains the upscaler to restore paintings from half their size with noise added."""

from pathlib import Path

import torch
from torch import Tensor, nn

from mimicry.demo.paintings import generator
from mimicry.demo.variants import SCALE, Upscaler
from tools.demo_weights.loop import LossOf
from tools.demo_weights.training_set import Images, recoloured

_BATCH, _CROP = 8, 96
# Range of the standard deviation of the noise, of 1.
_NOISE = (0.04, 0.24)


def upscaler_loss(upscaler: Upscaler, images_NHWI: Images, seed: int, device: str) -> LossOf:
    """Return the loss: the mean absolute error of the pixels."""
    upscaler.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = images_NHWI.shape[1]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(seed, "upscaler_batch", step)
        indices = rng.integers(len(images_NHWI), size=_BATCH)
        top, left = rng.integers(0, side - _CROP, size=2, endpoint=True)
        crops = images_NHWI[indices, top : top + _CROP, left : left + _CROP]
        clean_BIHW = torch.from_numpy(recoloured(crops, rng)).to(device).permute(0, 3, 1, 2).float() / 255
        small_BIHW = nn.functional.avg_pool2d(clean_BIHW, SCALE)
        levels = torch.from_numpy(rng.uniform(*_NOISE, (_BATCH, 1, 1, 1))).float().to(device)
        noise_BIHW = torch.from_numpy(rng.standard_normal(small_BIHW.shape, dtype="float32")).to(device)
        noisy_BIHW = (small_BIHW + levels * noise_BIHW).clamp(0, 1)
        return nn.functional.l1_loss(upscaler(noisy_BIHW), clean_BIHW), {}

    return loss_of


def save_upscaler(upscaler: Upscaler, path: Path) -> None:
    """Write the weights to `path` in bf16."""
    from safetensors.torch import save

    weights = {name: values.to(torch.bfloat16).contiguous() for name, values in upscaler.state_dict().items()}
    path.write_bytes(save(weights))
