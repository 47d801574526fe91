"""The VAE of a base model, always in fp32: it is small, and 16 bits show in its images."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from mimicry.tuning.hf_diffusers.base_model import BaseModel


def load_vae(model: BaseModel, variant: str | None, device: torch.device) -> AutoencoderKL:
    """Read the VAE."""
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
