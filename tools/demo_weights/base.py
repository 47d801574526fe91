"""Trains the transformer together with the text encoders on the latents of captioned paintings.

Sources of the mathematics: rectified flow with logit-normal timesteps, Esser et al. 2024, arXiv:2403.03206;
captions dropped at random for guidance, Ho and Salimans 2022, arXiv:2207.12598.
"""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimicry.demo.paintings import generator
from tools.demo_weights.loop import LossOf
from tools.demo_weights.tiny_sd3 import GEOMETRY
from tools.demo_weights.training_set import Images, caption
from tools.demo_weights.vae import as_pixels

BATCH = 12
# Token counts of T5 and their probabilities: padding takes part in attention, so train on each count.
_T5_LENGTHS = ((24, 0.5), (77, 0.47), (256, 0.03))

_ENCODED_TOGETHER = 64

TRAINED = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


class Base(nn.Module):
    """The trained parts as one module, and the pipeline that encodes prompts with them."""

    def __init__(self, models: dict[str, Any], folder: Path) -> None:
        """Take the tokenizers from the subfolders of `folder`."""
        from diffusers import StableDiffusion3Pipeline
        from transformers import CLIPTokenizer, T5TokenizerFast

        super().__init__()
        _close_gates(models["transformer"])
        for component in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            _spread_words(models[component])
        self.parts = nn.ModuleDict({name: models[name] for name in TRAINED})
        encoders = {name: models[name] for name in TRAINED if name != "transformer"}
        # Two threads cannot use a tokenizer at once.
        self._tokenizer_lock = Lock()
        self._pipeline = StableDiffusion3Pipeline(
            transformer=None, vae=None, scheduler=None, **encoders,
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            tokenizer_3=T5TokenizerFast.from_pretrained(folder / "tokenizer_3"),
        )  # fmt: skip

    def encode(self, captions: list[str], t5_length: int) -> tuple[Tensor, Tensor]:
        """Return the prompt embeddings (B, L, D) and the pooled ones (B, P) of `captions`, with gradients."""
        distinct = sorted(set(captions))
        rows = [distinct.index(text) for text in captions]
        with self._tokenizer_lock:
            sequence_1LD, _, pooled_1P, _ = self._pipeline.encode_prompt(
                distinct, None, None, do_classifier_free_guidance=False, max_sequence_length=t5_length
            )
        return sequence_1LD[rows], pooled_1P[rows]


def _close_gates(transformer: Any) -> None:
    """Set the modulation of each block by time and prompt to zero, for a stable start."""
    for name, parameter in transformer.named_parameters():
        if ".norm1" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(parameter)


def _spread_words(encoder: Any) -> None:
    """Draw word embeddings large enough to keep words apart after all layers, from the first step on."""
    for name, parameter in encoder.named_parameters():
        if name.endswith(("token_embedding.weight", "shared.weight")):
            nn.init.normal_(parameter)


@dataclass(frozen=True)
class Latents:
    """The scaled latents of N / 2 paintings, followed by those of the mirrored paintings.

    `means_NCHW` are the means of their posteriors; `deviation_C11` is the mean standard deviation.
    """

    means_NCHW: Tensor
    deviation_C11: Tensor


@torch.no_grad()
def encode_paintings(vae: Any, images_NHWI: Images, device: str) -> Latents:
    """Encode all paintings and set the VAE's shift and scaling factor so that latents have unit scale."""
    means, deviations = [], []
    for images in (images_NHWI, images_NHWI[:, :, ::-1]):
        for first in range(0, len(images), _ENCODED_TOGETHER):
            pixels_BIHW = as_pixels(images[first : first + _ENCODED_TOGETHER].copy(), device)
            posterior = vae.encode(pixels_BIHW).latent_dist
            means.append(posterior.mean.contiguous())
            deviations.append(posterior.std.mean(dim=(0, 2, 3)))
    means_NCHW = torch.cat(means)
    shift, scale = round(float(means_NCHW.mean()), 4), round(1 / float(means_NCHW.std()), 4)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return Latents((means_NCHW - shift) * scale, torch.stack(deviations).mean(dim=0).view(-1, 1, 1) * scale)


def base_loss(base: Base, latents: Latents, subjects: tuple[str, ...], seed: int) -> LossOf:
    """Return the loss of a step: squared error of the predicted velocity, noise minus latents."""
    base.eval()  # no dropout in T5
    means_NCHW = latents.means_NCHW
    transformer = base.parts["transformer"]
    device = means_NCHW.device
    lengths, shares = zip(*_T5_LENGTHS, strict=True)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = generator(seed, "base_batch", step)
        rows = rng.integers(len(means_NCHW), size=BATCH)
        captions = [caption(subjects[row % len(subjects)], rng) for row in rows]
        length = int(rng.choice(lengths, p=shares))
        shape = (BATCH, *means_NCHW.shape[1:])
        noise_BCHW, wobble_BCHW = (
            torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device) for _ in range(2)
        )
        latents_BCHW = means_NCHW[rows] + latents.deviation_C11 * wobble_BCHW
        sigmas_B = torch.from_numpy(_sigmas(rng)).to(device)
        sigmas_B111 = sigmas_B.view(-1, 1, 1, 1)
        sequence_BLD, pooled_BP = base.encode(captions, length)
        predicted_BCHW = transformer(
            hidden_states=(1 - sigmas_B111) * latents_BCHW + sigmas_B111 * noise_BCHW,
            encoder_hidden_states=sequence_BLD,
            pooled_projections=pooled_BP,
            timestep=1000 * sigmas_B,
            return_dict=False,
        )[0]
        return nn.functional.mse_loss(predicted_BCHW, noise_BCHW - latents_BCHW), {}

    return loss_of


def _sigmas(rng: np.random.Generator) -> "np.ndarray[Any, Any]":
    """Return logit-normal noise levels with the scheduler's shift."""
    levels = 1 / (1 + np.exp(-rng.standard_normal(BATCH)))
    shift = GEOMETRY.scheduler_shift
    return (shift * levels / (1 + (shift - 1) * levels)).astype(np.float32)
