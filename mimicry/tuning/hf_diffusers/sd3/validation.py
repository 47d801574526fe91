"""Validation images: what the adapter draws as it is trained, and what the base model drew before.

They come from the same noise at every step, for every artist and condition. Nothing that training draws or
computes is touched, and a fault here is a warning. Latents wait on disk and are decoded when the run is over:
the VAE in fp32 and its activations, several GiB at 1024 pixels, would come on top of transformer and
optimizer.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mimicry.common.files import canonical_json, sha256_text, write_bytes
from mimicry.study.drawn_images import save_sample
from mimicry.tuning.adapters import SAMPLES
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    NEGATIVE_PROMPT,
    SamplingSettings,
    StepModulation,
    initial_noise,
    latent_shape,
    sample_latents,
    sampling_modulation,
)
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.latents import decode, load_vae
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from mimicry.tuning.options.config import TuningConfig

_BASE = "base"
_LATENTS = ".latents"
# The embeddings of the validation prompt and of the negative prompt.
ValidationPrompts = tuple[PromptEmbeds, PromptEmbeds]


def is_due(config: TuningConfig, image_count: int, step: int) -> bool:
    """Return whether images are drawn after `step`: every validation_epochs epochs, and at the end."""
    period = config.validation_epochs * config.repeats * image_count
    samples = step * config.samples_per_step
    ends_period = samples // period > (samples - config.samples_per_step) // period
    return step > 0 and (ends_period or step == config.step_count(image_count))


class Validation:
    """The validation of one run; one without prompts does nothing."""

    def __init__(
        self, setup: Setup, model: AdaptedTransformer, prompts: ValidationPrompts | None, record: RunRecord
    ) -> None:
        self._setup = setup
        self._model = model
        self._config = setup.args.config
        self._prompts = prompts
        self._record = record
        self._settings = SamplingSettings(resolution=self._config.resolution)

    def draw_base(self) -> None:
        """Draw what the base model makes of the prompt, unless it is there; before the first step only."""
        wanted = [path for path in base_paths(self._setup) if not path.exists()]
        if self._prompts is not None and wanted:
            self._draw(_BASE, "the base model's validation images")

    def draw_after(self, step: int) -> None:
        """Draw the images after optimizer step `step`, where they are due and not there."""
        if self._prompts is not None and is_due(self._config, len(self._setup.data.images.names), step):
            self._draw(f"step-{step:06d}", f"validation images after step {step}")

    def _draw(self, name: str, what: str) -> None:
        folder = self._setup.args.inputs.output_dir / SAMPLES
        if (folder / (name + _LATENTS)).exists() or not self._setup.runtime.processes.is_main:
            return
        with _only_a_warning(self._record, what), self._record.stage("validate"):
            latents_BCHW = self._sample()
            if not latents_BCHW.isfinite().all():
                raise ValueError("the transformer returned numbers that are not finite")
            write_bytes(folder / (name + _LATENTS), save({"latents": latents_BCHW}))
            say(f"drew {what}; they are decoded at the end")

    def _sample(self) -> Tensor:
        config, model = self._config, self._setup.model
        shape = latent_shape(model, self._settings.resolution)
        with self._model.evaluating():
            latents = [
                sample_latents(
                    self._model.transformer,
                    model.folder / "scheduler",
                    *self._embeds,
                    initial_noise(config.seed, "validation_noise", index, "", shape),
                    self._settings,
                    self._modulation,
                ).cpu()
                for index in range(config.num_validation_images)
            ]
        return torch.cat(latents)

    @functools.cached_property
    def _embeds(self) -> tuple[PromptEmbeds, PromptEmbeds]:
        assert self._prompts is not None
        device, dtype = self._model.runtime.device, self._model.runtime.dtype
        prompt, negative = self._prompts
        return prompt.to(device, dtype), negative.to(device, dtype)

    @functools.cached_property
    def _modulation(self) -> StepModulation | None:
        # Of its own: other timesteps than training's, and one image at a time.
        return sampling_modulation(
            self._model.transformer,
            self._setup.model,
            self._config,
            *self._embeds,
            steps=self._settings.steps,
            batch_size=1,
        )


def decode_samples(setup: Setup, record: RunRecord) -> None:
    """Decode all latents that the run has left; call it when nothing refers to the transformer any more."""
    files = sorted((setup.args.inputs.output_dir / SAMPLES).glob(f"*{_LATENTS}"))
    if not files or not setup.runtime.processes.is_main:
        return
    with record.stage("decode"), _only_a_warning(record, "validation images"):
        # Accelerate lets go of the optimizer, and gives memory back.
        setup.runtime.accelerator.free_memory()
        vae = load_vae(setup.model, setup.args.config.variant, setup.runtime.device)
        for file in files:
            name = file.name.removesuffix(_LATENTS)
            count = setup.args.config.num_validation_images
            paths = [file.with_name(f"{name}_{index}.png") for index in range(count)]
            if name == _BASE:
                paths = base_paths(setup)
            facts = _facts(setup) | {"step": 0 if name == _BASE else int(name.removeprefix("step-"))}
            images = decode(vae, load_file(file)["latents"])
            for index, (path, image) in enumerate(zip(paths, images, strict=True)):
                # The base model's may have come from another process meanwhile.
                if name != _BASE or not path.exists():
                    save_sample(path, image, facts | {"index": index})
            file.unlink()
        say(f"decoded the validation images of {len(files)} points in time")


def base_paths(setup: Setup) -> list[Path]:
    """Return where the base model's images belong: one folder for all runs with the same of them."""
    root, count = setup.args.inputs.base_samples_dir, setup.args.config.num_validation_images
    if root is None:
        return [setup.args.inputs.output_dir / SAMPLES / f"{_BASE}_{index}.png" for index in range(count)]
    key = sha256_text(canonical_json(_facts(setup)))[:16]
    return [root / key / f"{index}.png" for index in range(count)]


def _facts(setup: Setup) -> dict[str, Any]:
    # All that the base model's images depend on, but for their number.
    config = setup.args.config
    return {
        "base_model": setup.model.identity(),
        "variant": config.variant,
        "mixed_precision": config.mixed_precision,
        "prompt": config.validation_prompt,
        "negative_prompt": NEGATIVE_PROMPT,
        "max_sequence_length": config.max_sequence_length,
        "seed": config.seed,
        **asdict(SamplingSettings(resolution=config.resolution)),
    }


@contextmanager
def _only_a_warning(record: RunRecord, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # The text may name a path of this machine, which has no place in training_run.json.
        say(f"{what}: {error}")
        record.warn(f"no {what}: {type(error).__name__}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
