"""Drawing with many adapters: one base model in memory, on which they take turns."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, SD3Transformer2DModel
from PIL import Image

from mimicry.common.errors import AdapterBroken, BatchFault, UsageError
from mimicry.tuning.adapters import WEIGHTS
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.sd3.prompt_cache import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    NEGATIVE_PROMPT,
    SamplingSettings,
    initial_noise,
    latent_shape,
    sample_latents,
)
from mimicry.tuning.hf_diffusers.sd3.transformer import read_transformer
from mimicry.tuning.hf_diffusers.training.device_memory import free_memory
from mimicry.tuning.hf_diffusers.training.kernels import attention
from mimicry.tuning.hf_diffusers.training.precision import fp16_problem, training_dtype
from mimicry.tuning.hf_diffusers.training.vae import decode, load_vae
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True)
class Sampler:
    """The base model, ready to draw `prompts`; `adapter` puts an adapter on for a while."""

    model: BaseModel
    config: TuningConfig
    settings: SamplingSettings
    device: torch.device
    prompts: Mapping[str, PromptEmbeds]
    transformer: SD3Transformer2DModel
    vae: AutoencoderKL

    @classmethod
    def load(
        cls, model: BaseModel, config: TuningConfig, settings: SamplingSettings, prompts: Iterable[str]
    ) -> "Sampler":
        """Encode the prompts that are not cached, then read transformer and VAE.

        Raises:
            UsageError: the device does not have the precision.
        """
        has_gpu = torch.cuda.is_available()
        problem = fp16_problem("--mixed-precision", config.mixed_precision, has_gpu=has_gpu)
        if problem is not None:
            raise UsageError(problem)
        device, dtype = torch.device("cuda" if has_gpu else "cpu"), training_dtype(config)
        transformers.utils.logging.disable_progress_bar()
        embeds = _encode(model, config, device, dict.fromkeys([*prompts, NEGATIVE_PROMPT]))
        free_memory(device)
        transformer = read_transformer(model, config, device, dtype).eval()
        vae = load_vae(model, config.variant, device)
        return cls(model, config, settings, device, embeds, transformer, vae)

    @contextmanager
    def adapter(self, folder: Path | None) -> Iterator[None]:
        """Draw with the adapter in `folder` in the body; None is the base model alone. It leaves no trace.

        Raises:
            AdapterBroken: it does not fit the base model.
        """
        if folder is None:
            yield
            return
        try:
            try:
                self.transformer.load_lora_adapter(folder, weight_name=WEIGHTS, adapter_name="sampled")
            # peft and diffusers may raise any error here.
            except Exception as error:
                raise AdapterBroken(f"{folder} does not go with the base model: {error}") from error
            for name, parameter in self.transformer.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.to(self.device, training_dtype(self.config))
            self.transformer.eval()
            yield
        finally:
            self.transformer.unload_lora()

    def image(self, prompt: str, seed: int) -> Image.Image:
        """Return what is drawn for one of the prompts; equal seeds begin with equal noise.

        Raises:
            AdapterBroken: the numbers that come out are not finite.
            BatchFault: the GPU has too little memory.
        """
        settings = self.settings
        noise = initial_noise(seed, "sample_noise", 0, "", latent_shape(self.model, settings.resolution))
        try:
            with attention(self.config, self.device):
                latents = sample_latents(
                    self.transformer,
                    self.model.folder / "scheduler",
                    self.prompts[prompt],
                    self.prompts[NEGATIVE_PROMPT],
                    noise,
                    settings,
                )
            if not latents.isfinite().all():
                raise AdapterBroken(f"what is drawn of {prompt!r} is made of numbers that are not finite")
            return decode(self.vae, latents)[0]
        except torch.OutOfMemoryError as error:
            raise BatchFault(
                f"out of GPU memory: {str(error).splitlines()[0]}; type a smaller --resolution"
            ) from error


def _encode(
    model: BaseModel, config: TuningConfig, device: torch.device, prompts: Iterable[str]
) -> dict[str, PromptEmbeds]:
    dtype, texts = training_dtype(config), list(prompts)
    encoders = TextEncoders(model, config.variant, device, dtype, _warn)
    cached = CachedEncoders.of(encoders, config.prompt_cache_dir)
    made = cached.encode_all(texts, config.max_sequence_length)
    return {text: embeds.to(device, dtype) for text, embeds in zip(texts, made, strict=True)}


def _warn(text: str) -> None:
    print(f"warning: {text}", flush=True)
