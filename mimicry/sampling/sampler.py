"""Drawing pictures of some prompts, with one base model in memory for many adapters."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, SD3Transformer2DModel
from PIL import Image
from torch import Tensor

from mimicry.common.errors import AdapterBroken, BatchFault, UsageError
from mimicry.common.hardware import host_memory_problem
from mimicry.tuning.adapters import ANY_LORA, WEIGHTS, check_header
from mimicry.tuning.hf_diffusers.sd3.modulation import trained_modulation
from mimicry.tuning.hf_diffusers.sd3.prompts import CachedEncoders, PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    NEGATIVE_PROMPT,
    SamplingSettings,
    StepModulation,
    initial_noise,
    latent_shape,
    sample_latents,
    sampling_modulations,
)
from mimicry.tuning.hf_diffusers.sd3.transformer import cache_obstacle, read_transformer
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.device import fp16_problem, free_memory, training_dtype
from mimicry.tuning.hf_diffusers.training.fused_layers import use_fused_lora
from mimicry.tuning.hf_diffusers.training.kernels import attention
from mimicry.tuning.hf_diffusers.training.latents import decode, load_vae
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True)
class BaseTransformer:
    """The transformer, with what it takes in place of each pooled prompt; nothing for a whole one."""

    transformer: SD3Transformer2DModel
    modulations: Mapping[str, StepModulation]
    device: torch.device

    @classmethod
    def read(
        cls,
        model: BaseModel,
        config: TuningConfig,
        device: torch.device,
        prompts: Mapping[str, PromptEmbeds],
        *,
        steps: int,
        trained_layers: Collection[str],
    ) -> "BaseTransformer":
        """Read the transformer, and say so where it can have no conditioning table.

        Args:
            prompts: the negative prompt among them, on the device and in the precision of `config`.
            trained_layers: layers that the adapters train, as peft names them.
        """
        texts = list(prompts)
        obstacle = cache_obstacle(model, config, trained_layers, len(texts) * steps)
        if obstacle is not None and config.conditioning_table:
            print(f"no conditioning table: {obstacle}; the whole transformer is read", flush=True)
        transformer = read_transformer(
            model,
            config,
            device,
            training_dtype(config),
            cached_modulation=config.conditioning_table and obstacle is None,
        )
        made = sampling_modulations(
            transformer,
            model,
            config,
            list(prompts.values()),
            negative=texts.index(NEGATIVE_PROMPT),
            steps=steps,
            batch_size=1,
        )
        return cls(transformer.eval(), dict(zip(texts, made, strict=True)) if made else {}, device)

    @contextmanager
    def adapter(self, folder: Path | None) -> Iterator[None]:
        """Draw with the adapter in `folder`, if any; raises AdapterBroken where it does not fit."""
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
                    # As in training, whatever the precision of the base model.
                    parameter.data = parameter.data.to(self.device, torch.float32)
            self.transformer.eval()
            with use_fused_lora(self.transformer):
                yield
        finally:
            self.transformer.unload_lora()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        self.transformer.to("cpu")
        free_memory(self.device)
        try:
            yield
        finally:
            self.transformer.to(self.device)

    @property
    def byte_count(self) -> int:
        return sum(parameter.nbytes for parameter in self.transformer.parameters())


def replaced_layers(model: BaseModel, folder: Path | None) -> list[str]:
    """Return the layers that the adapter in `folder` trains and that a conditioning table would replace."""
    if folder is not None:
        # Why an adapter cannot be read is said when it is put on.
        with suppress(AdapterBroken):
            modules = check_header(folder / WEIGHTS, ANY_LORA, None).modules
            return trained_modulation(int(model.config_of("transformer")["num_layers"]), modules)
    return []


@dataclass(frozen=True)
class Sampler:
    """The base model, ready to draw `prompts`; `base.adapter` puts an adapter on for a while."""

    model: BaseModel
    config: TuningConfig
    settings: SamplingSettings
    prompts: Mapping[str, PromptEmbeds]
    base: BaseTransformer
    vae: AutoencoderKL

    @classmethod
    def load(
        cls,
        model: BaseModel,
        config: TuningConfig,
        settings: SamplingSettings,
        prompts: Iterable[str],
        trained_layers: Collection[str] = (),
    ) -> "Sampler":
        """Encode the prompts, then read transformer and VAE; raises UsageError for a missing precision."""
        has_gpu = torch.cuda.is_available()
        if problem := fp16_problem("--mixed-precision", config.mixed_precision, has_gpu=has_gpu):
            raise UsageError(problem)
        device = torch.device("cuda" if has_gpu else "cpu")
        transformers.utils.logging.disable_progress_bar()
        # What an earlier sampler left must be gone before the encoders come, and they before the transformer.
        free_memory(device)
        embeds = _encode(model, config, device, dict.fromkeys([*prompts, NEGATIVE_PROMPT]))
        free_memory(device)
        base = BaseTransformer.read(
            model, config, device, embeds, steps=settings.steps, trained_layers=trained_layers
        )
        return cls(model, config, settings, embeds, base, load_vae(model, config.variant, device))

    def image(self, prompt: str, seed: int) -> Image.Image:
        """Return what is drawn for one of the prompts; equal seeds begin with equal noise.

        Raises:
            AdapterBroken: the numbers that come out are not finite.
            BatchFault: the GPU has too little memory.
        """
        settings = self.settings
        noise = initial_noise(seed, "sample_noise", 0, "", latent_shape(self.model, settings.resolution))
        try:
            with attention(self.config, self.base.device):
                latents = sample_latents(
                    self.base.transformer,
                    self.model.folder / "scheduler",
                    self.prompts[prompt],
                    self.prompts[NEGATIVE_PROMPT],
                    noise,
                    settings,
                    self.base.modulations.get(prompt),
                )
            if not latents.isfinite().all():
                raise AdapterBroken(f"what is drawn of {prompt!r} is made of numbers that are not finite")
            return self._decode(latents)
        except torch.OutOfMemoryError as error:
            raise BatchFault(
                f"out of GPU memory: {str(error).splitlines()[0]}; type a smaller --resolution"
            ) from error

    def _decode(self, latents: Tensor) -> Image.Image:
        """Return the image, decoded next to the transformer if there is room for both."""
        try:
            return decode(self.vae, latents)[0]
        except torch.OutOfMemoryError:
            if host_memory_problem(self.base.byte_count) is not None:
                raise
        # Not in the handler: the error keeps alive what was decoded before it.
        with self.base.set_aside():
            return decode(self.vae, latents)[0]


def _encode(
    model: BaseModel, config: TuningConfig, device: torch.device, prompts: Iterable[str]
) -> dict[str, PromptEmbeds]:
    dtype, texts = training_dtype(config), list(prompts)
    warn = partial(print, "warning:", flush=True)
    encoders = TextEncoders(model, config.variant, device, dtype, warn)
    cached = CachedEncoders.from_option(encoders, config.prompt_cache_dir)
    made = cached.encode_all(texts, config.max_sequence_length)
    return {text: embeds.to(device, dtype) for text, embeds in zip(texts, made, strict=True)}
