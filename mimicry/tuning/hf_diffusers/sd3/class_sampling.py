"""Class images, drawn by the base model, for prior preservation (Ruiz et al. 2023, arXiv:2208.12242).

Image number k follows from the settings and from k, no matter which images are missing. Latents wait on disk
until all are sampled: the transformer is freed before the VAE is read, and a killed process loses nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from mimicry.common.errors import TrainingFailed
from mimicry.common.files import atomic_path, canonical_json, remove_leftovers, sha256_text
from mimicry.study.drawn_images import ClassImages, generated_name
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.sampling import (
    SamplingSettings,
    StepModulation,
    initial_noise,
    latent_shape,
    sample_latents,
    sampling_modulation,
)
from mimicry.tuning.hf_diffusers.sd3.transformer import (
    cache_obstacle,
    read_transformer,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.preflight import generation_precision, generation_settings
from mimicry.tuning.hf_diffusers.training.device import DTYPES
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.latents import decode, load_vae
from mimicry.tuning.hf_diffusers.training.runtime import Runtime

_LOCK = ".class_images.lock"
# After so long a wait for another process that is said again: a log without new lines looks like a fault.
REMIND_SECONDS = 60


def make_class_images(
    class_images: ClassImages,
    model: BaseModel,
    runtime: Runtime,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
) -> None:
    """Generate the class images that are missing, in one process; raises TrainingFailed."""
    try:
        class_images.folder.mkdir(parents=True, exist_ok=True)
        with _locked(class_images.folder):
            _Generation(class_images, model, runtime).run(prompt, negative)
    except OSError as error:
        raise TrainingFailed(
            f"--class_data_dir: images cannot be generated in {class_images.folder}: {error}"
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / _LOCK)
    while True:
        try:
            lock.acquire(timeout=REMIND_SECONDS)
            break
        except Timeout:
            say("waiting for another process that generates class images")
    try:
        yield
    finally:
        lock.release()


class _Generation:
    """Makes the images that are missing in a folder, whose lock is held."""

    def __init__(self, class_images: ClassImages, model: BaseModel, runtime: Runtime) -> None:
        config = runtime.config
        self._images, self._model, self._config, self._runtime = class_images, model, config, runtime
        self._settings = generation_settings(config, model)
        self._mark = sha256_text(canonical_json(self._settings))[:12]
        self._dtype = DTYPES[generation_precision(config)]
        self._sampling = SamplingSettings(resolution=config.resolution)

    def run(self, prompt: PromptEmbeds, negative: PromptEmbeds) -> None:
        # Another process may have made them, or begun with other settings, since we looked.
        missing = self._images.missing()
        problems = self._images.problems(self._settings)
        if problems:
            raise TrainingFailed(*problems)
        if not missing:
            return
        self._images.record_settings(self._settings)
        say(f"generating {len(missing)} of {self._images.count} class images in {self._images.folder}")
        unsampled = [index for index in missing if not self._latents_path(index).exists()]
        if unsampled:
            self._sample(unsampled, prompt, negative)
            self._runtime.free_memory()
        self._decode(missing)
        self._runtime.free_memory()
        for leftover in self._images.folder.glob(".latents-*.safetensors"):
            leftover.unlink()

    def _sample(self, indices: list[int], prompt: PromptEmbeds, negative: PromptEmbeds) -> None:
        config, size = self._config, self._config.sample_batch_size
        prompt, negative = (one.to(self._runtime.device, self._dtype) for one in (prompt, negative))
        scheduler = self._model.folder / "scheduler"
        shape, name = latent_shape(self._model, config.resolution), str(config.class_prompt)
        with self._runtime.attention():
            transformer, modulation = self._transformer(prompt, negative)
            transformer.eval()
            for group in sorted({index // size for index in indices}):
                # Always a whole batch: what is made of an image depends on the shape of the computation.
                members = range(group * size, (group + 1) * size)
                noise_BCHW = torch.cat(
                    [initial_noise(config.seed, "class_image", k, name, shape) for k in members]
                )
                latents_BCHW = sample_latents(
                    transformer, scheduler, prompt, negative, noise_BCHW, self._sampling, modulation
                ).cpu()
                for index, latents_CHW in zip(members, latents_BCHW, strict=True):
                    if index in indices:
                        path = self._latents_path(index)
                        remove_leftovers(path)
                        with atomic_path(path) as temporary:
                            save_file({"latents": latents_CHW.unsqueeze(0).contiguous()}, temporary)
                done = sum(index < members.stop for index in indices)
                say(f"class images: {done} of {len(indices)} sampled")

    def _transformer(self, prompt: PromptEmbeds, negative: PromptEmbeds) -> tuple[Any, StepModulation | None]:
        model, config, steps = self._model, self._config, self._sampling.steps
        # A row for each step, of the prompt and of the negative prompt.
        cached = config.conditioning_table and not cache_obstacle(model, config, (), 2 * steps)
        transformer = read_transformer(
            model, config, self._runtime.device, self._dtype, cached_modulation=bool(cached)
        )
        return transformer, sampling_modulation(
            transformer, model, config, prompt, negative, steps=steps, batch_size=config.sample_batch_size
        )

    def _decode(self, indices: list[int]) -> None:
        vae = load_vae(self._model, self._config.variant, self._runtime.device)
        for index in indices:
            latents = self._latents_path(index)
            (image,) = decode(vae, load_file(latents)["latents"])
            path = self._images.folder / generated_name(index)
            remove_leftovers(path)
            with atomic_path(path) as temporary:
                image.save(temporary, "PNG")
            latents.unlink()
        say(f"class images: {len(indices)} made")

    def _latents_path(self, index: int) -> Path:
        # Other settings make other latents.
        return self._images.folder / f".latents-{self._mark}-{index:05}.safetensors"
