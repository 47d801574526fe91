"""Drawing with many adapters: one base model in memory, on which they take turns."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from diffusers import SD3Transformer2DModel
from PIL import Image

from mimicry.common.errors import AdapterBroken, BatchFault, UsageError
from mimicry.tuning.adapters import WEIGHTS
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.sd3.prompt_cache import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    NEGATIVE_PROMPT,
    SamplingSettings,
    decode,
    initial_noise,
    latent_shape,
    load_vae,
    sample_latents,
)
from mimicry.tuning.hf_diffusers.training.kernels import attention
from mimicry.tuning.options import TuningConfig

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Sampler:
    """The base model, ready to draw `prompts`; `adapter` puts an adapter on for a while."""

    def __init__(
        self, model: BaseModel, config: TuningConfig, settings: SamplingSettings, prompts: Iterable[str]
    ) -> None:
        """Encode the prompts, of which those are not read that are cached; then read transformer and VAE.

        Raises:
            UsageError: the device has not the precision.
        """
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = _DTYPES[config.mixed_precision]
        _check_precision(config, self._device)
        transformers.utils.logging.disable_progress_bar()
        self._model, self._config, self._settings = model, config, settings
        self._prompts = self._encode([*prompts, NEGATIVE_PROMPT])
        self.transformer = SD3Transformer2DModel.from_pretrained(
            model.folder / "transformer",
            variant=config.variant,
            torch_dtype=self._dtype,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            device_map={"": self._device},
        ).eval()
        self._vae = load_vae(model, config.variant, self._device)

    @contextmanager
    def adapter(self, folder: Path | None) -> Iterator[None]:
        """Draw with the adapter in `folder` in the body; None is the base model alone. It leaves no trace.

        Raises:
            AdapterBroken: it does not go with the base model.
        """
        if folder is None:
            yield
            return
        try:
            try:
                self.transformer.load_lora_adapter(folder, weight_name=WEIGHTS, adapter_name="sampled")
            # peft and diffusers raise whatever comes to the hand of them.
            except Exception as error:
                raise AdapterBroken(f"{folder} does not go with the base model: {error}") from error
            for name, parameter in self.transformer.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.to(self._device, self._dtype)
            self.transformer.eval()
            yield
        finally:
            self.transformer.unload_lora()

    def image(self, prompt: str, seed: int) -> Image.Image:
        """Return what is drawn of one of the prompts; equal seeds begin with equal noise.

        Raises:
            AdapterBroken: the numbers that come out are not finite.
            BatchFault: the memory of the GPU does not suffice.
        """
        settings = self._settings
        noise = initial_noise(seed, "sample_noise", 0, "", latent_shape(self._model, settings.resolution))
        try:
            with attention(self._config, self._device):
                latents = sample_latents(
                    self.transformer,
                    self._model.folder / "scheduler",
                    self._prompts[prompt],
                    self._prompts[NEGATIVE_PROMPT],
                    noise,
                    settings,
                )
            if not latents.isfinite().all():
                raise AdapterBroken(f"what is drawn of {prompt!r} is made of numbers that are not finite")
            return decode(self._vae, latents)[0]
        except torch.OutOfMemoryError as error:
            raise BatchFault(
                f"out of GPU memory: {str(error).splitlines()[0]}; type a smaller --resolution"
            ) from error

    def _encode(self, prompts: Iterable[str]) -> dict[str, PromptEmbeds]:
        config = self._config
        encoders = TextEncoders(self._model, config.variant, self._device, self._dtype, _warn)
        cached = CachedEncoders.of(encoders, config.prompt_cache_dir)
        texts = list(dict.fromkeys(prompts))
        embeds = {
            text: made.to(self._device, self._dtype)
            for text, made in zip(texts, cached.encode_all(texts, config.max_sequence_length), strict=True)
        }
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return embeds


def _check_precision(config: TuningConfig, device: torch.device) -> None:
    if config.mixed_precision == "fp16" and device.type != "cuda":
        raise UsageError("--mixed-precision fp16 needs a GPU; on the CPU type --mixed-precision bf16 or no")


def _warn(text: str) -> None:
    print(f"warning: {text}", flush=True)
