"""Images to latents and back.

Images are encoded in fp32, and kept as mean and standard deviation of the VAE's posterior: 16 bits would
show.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.study.images import read_rgb
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.options.config import TuningConfig

Posterior = tuple[Tensor, Tensor]


def apply_crop(image: Image.Image, crop: rng.Crop, resolution: int) -> Image.Image:
    """Return the largest square of `image` that `crop` asks for, scaled to `resolution` pixels a side."""
    side = min(image.size)
    left = (image.width - side) * crop.across
    upper = (image.height - side) * crop.down
    square = image.resize(
        (resolution, resolution), Image.Resampling.LANCZOS, box=(left, upper, left + side, upper + side)
    )
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flipped else square


def to_pixels(image: Image.Image) -> Tensor:
    """Return `image` as a tensor of shape (1, 3, height, width) in fp32, from -1 to 1."""
    values_HWI = torch.from_numpy(np.array(image, dtype=np.float32))
    return (values_HWI / 127.5 - 1).permute(2, 0, 1).unsqueeze(0).contiguous()


class LatentSource:
    """Latents of samples, each drawn from the posterior of its image; the same in every batch."""

    def __init__(
        self,
        vae: AutoencoderKL,
        images: Sequence[Path],
        config: TuningConfig,
        class_images: Sequence[Path] = (),
    ) -> None:
        self._images = {"": images, rng.CLASS: class_images}
        self._resolution = config.resolution
        self._seed = config.seed
        self._reading = config.reading
        self._cache: dict[tuple[str, rng.Crop], Posterior] = {}
        self._vae: AutoencoderKL | None = vae
        self._shift, self._scale = shift_and_scale(vae)

    @classmethod
    def load(
        cls,
        model: BaseModel,
        images: Sequence[Path],
        config: TuningConfig,
        device: torch.device,
        class_images: Sequence[Path] = (),
    ) -> "LatentSource":
        return cls(load_vae(model, config.variant, device), images, config, class_images)

    def cache(self, samples: Iterable[rng.Sample]) -> None:
        """Encode what `samples` show, each distinct crop of an image once, then let the VAE go."""
        for sample in samples:
            self.hold(self._path(sample), sample.crop)
        self._vae = None

    def hold(self, image: Path, crop: rng.Crop) -> None:
        """Encode a crop of an image file and keep its posterior; once, however often it is asked for."""
        key = _key(image, crop)
        if key not in self._cache:
            self._cache[key] = self._encode(image, crop)

    def latents(self, sample: rng.Sample) -> Tensor:
        """Return the latents of `sample`, of shape (C, H, W) in fp32 on the CPU, shifted and scaled."""
        path, purpose = self._path(sample), sample.purpose("vae")
        return self.draw(path, sample.crop, purpose, sample.index, sample.stem, seed=self._seed)

    def draw(self, image: Path, crop: rng.Crop, purpose: str, index: int, stem: str, *, seed: int) -> Tensor:
        """Return latents as `latents` does, from a crop of a file, with the draw of the other arguments."""
        key = _key(image, crop)
        mean_CHW, deviation_CHW = self._cache[key] if key in self._cache else self._encode(image, crop)
        noise_CHW = torch.from_numpy(rng.normal(seed, purpose, index, stem, tuple(mean_CHW.shape)))
        return (mean_CHW + deviation_CHW * noise_CHW - self._shift) * self._scale

    def _path(self, sample: rng.Sample) -> Path:
        return self._images[sample.kind][sample.image]

    @torch.no_grad()
    def _encode(self, image: Path, crop: rng.Crop) -> Posterior:
        if self._vae is None:
            raise KeyError(f"image {image} was not among the samples that were cached")
        try:
            picture = read_rgb(image, self._reading)
        except OSError as error:
            raise TrainingFailed(str(error)) from error
        pixels_1IHW = to_pixels(apply_crop(picture, crop, self._resolution))
        posterior = self._vae.encode(pixels_1IHW.to(self._vae.device)).latent_dist
        return posterior.mean[0].cpu(), posterior.std[0].cpu()


def _key(image: Path, crop: rng.Crop) -> tuple[str, rng.Crop]:
    # One file has one posterior, by whichever of its paths it is asked for.
    return os.path.realpath(image), crop


def load_vae(model: BaseModel, variant: str | None, device: torch.device) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(
        model.folder / "vae", variant=variant, torch_dtype=torch.float32, use_safetensors=True
    )
    return vae.to(device).eval()


def shift_and_scale(vae: AutoencoderKL) -> tuple[float, float]:
    """Return what is subtracted from latents, and what they are then multiplied by."""
    return float(vae.config.shift_factor or 0.0), float(vae.config.scaling_factor)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents_BCHW: Tensor) -> list[Image.Image]:
    """Return the images of `latents_BCHW`, decoded one by one, so that an image does not depend on others."""
    shift, scale = shift_and_scale(vae)
    images = []
    for latents_CHW in latents_BCHW:
        raw_1CHW = latents_CHW.unsqueeze(0).to(vae.device, torch.float32) / scale + shift
        pixels_IHW = vae.decode(raw_1CHW, return_dict=False)[0][0]
        values_HWI = ((pixels_IHW / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
        images.append(Image.fromarray(values_HWI.cpu().numpy().astype(np.uint8)))
    return images
