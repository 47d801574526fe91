"""Judges adapters by the public interface of diffusers alone, whatever trained them."""

from collections import Counter
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor

_LEVELS = 8
_BATCH = 8


class Judge:
    """Measures the error of the predicted velocity on fixed images, with fixed noise at fixed levels.

    Everything but the adapter stays the same from one measurement to the next. On the CPU it is computed in
    fp32, on a GPU in bf16.
    """

    def __init__(self, model: Path, images: list[Path], prompt: str, *, resolution: int, tokens: int) -> None:
        """Read the model, and encode the prompt and the images.

        Args:
            tokens: those that T5 reads.
        """
        # It would say of each adapter that it has no part for the text encoders.
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if cuda else "cpu")
        self._dtype = torch.bfloat16 if cuda else torch.float32
        self._pipeline = StableDiffusion3Pipeline.from_pretrained(model, torch_dtype=self._dtype)
        self._pipeline.to(self._device)
        with torch.no_grad():
            self._sequence_1LD, _, self._pooled_1P, _ = self._pipeline.encode_prompt(
                prompt, None, None, max_sequence_length=tokens, do_classifier_free_guidance=False
            )
            latents_NCHW = torch.cat([self._latents(path, resolution) for path in images])
        scheduler = self._pipeline.scheduler
        steps = torch.linspace(0, len(scheduler.timesteps) - 1, _LEVELS + 2)[1:-1].round().long()
        count = len(latents_NCHW)
        self._timesteps_S = scheduler.timesteps[steps].repeat(count).to(self._device)
        sigmas_S111 = scheduler.sigmas[steps].repeat(count)[:, None, None, None].float()
        latents_SCHW = latents_NCHW.repeat_interleave(_LEVELS, dim=0)
        noise_SCHW = torch.randn(latents_SCHW.shape, generator=torch.Generator().manual_seed(0))
        self._noisy_SCHW = (1 - sigmas_S111) * latents_SCHW + sigmas_S111 * noise_SCHW
        self._velocity_SCHW = noise_SCHW - latents_SCHW

    def _latents(self, path: Path, resolution: int) -> Tensor:
        """Return the mean latents of the image's largest square, (1, C, H, W) in fp32 on the CPU."""
        with Image.open(path) as opened:
            image = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), (resolution, resolution))
        pixels_1CHW = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        vae = self._pipeline.vae
        encoded = vae.encode(pixels_1CHW.to(self._device, self._dtype)).latent_dist.mean.float().cpu()
        latents_1CHW: Tensor = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
        return latents_1CHW

    def error(self, adapter: Path | None = None) -> float:
        """Return the mean squared error of the velocity; of the base model, or with a folder's adapter."""
        if adapter is not None:
            self._pipeline.load_lora_weights(adapter)
        try:
            starts = range(0, len(self._noisy_SCHW), _BATCH)
            errors = [self._batch_errors(slice(start, start + _BATCH)) for start in starts]
        finally:
            if adapter is not None:
                self._pipeline.unload_lora_weights()
        return float(torch.cat(errors).mean())

    @torch.no_grad()
    def _batch_errors(self, rows: slice) -> Tensor:
        noisy_BCHW = self._noisy_SCHW[rows].to(self._device, self._dtype)
        count = len(noisy_BCHW)
        velocity_BCHW = self._pipeline.transformer(
            hidden_states=noisy_BCHW,
            encoder_hidden_states=self._sequence_1LD.expand(count, -1, -1),
            pooled_projections=self._pooled_1P.expand(count, -1),
            timestep=self._timesteps_S[rows],
            return_dict=False,
        )[0]
        differences_BCHW: Tensor = velocity_BCHW.float().cpu() - self._velocity_SCHW[rows]
        return differences_BCHW.square().mean(dim=(1, 2, 3))


def tensors_of(weights: Path) -> str:
    """Return the number of the tensors in a safetensors file, by type, such as "78 bf16"."""
    with safe_open(weights, "pt") as file:
        kinds = Counter(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118 - no mapping
    return ", ".join(f"{count} {kind.lower()}" for kind, count in sorted(kinds.items()))
