"""What a training shows: images, their captions, class images, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mimicry.common.errors import TrainingFailed, UsageError
from mimicry.study import Captions, ImageFolder, ImageRecord
from mimicry.study.class_images import ClassImages
from mimicry.study.image_checks import refuse_changed_images
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.class_settings import (
    class_images_of,
    generation_precision,
    generation_settings,
)
from mimicry.tuning.hf_diffusers.job import Job
from mimicry.tuning.hf_diffusers.training.precision import fp16_problem
from mimicry.tuning.hf_diffusers.training.prompt_plan import PromptPlan
from mimicry.tuning.hf_diffusers.training.rng import CLASS, SamplePlan
from mimicry.tuning.hf_diffusers.training.schedule import SampleSchedule
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The images of a training, with the prompts and the order of their samples.

    `captions` is None where none are asked for, `class_images` without prior preservation.
    """

    images: ImageFolder
    captions: Captions | None
    class_images: ClassImages | None
    prompts: PromptPlan
    schedule: SampleSchedule

    @property
    def class_paths(self) -> list[Path]:
        return [] if self.class_images is None else self.class_images.images.paths

    def refuse_changed_images(self, records: Sequence[ImageRecord]) -> None:
        """Refuse images that are not those of the records any more.

        Raises:
            TrainingFailed: they were changed.
        """
        refuse_changed_images(self.images, records)

    @classmethod
    def make(
        cls,
        config: TuningConfig,
        images: ImageFolder,
        captions: Captions | None,
        class_images: ClassImages | None,
        *,
        process_count: int,
        process_index: int,
    ) -> "TrainingData":
        """Return the data of one of `process_count` processes."""
        texts = [None] * len(images.names) if captions is None else captions.prompts(config.caption_template)
        return cls(
            images=images,
            captions=captions,
            class_images=class_images,
            prompts=PromptPlan.make(config.instance_prompt, texts, config.class_prompt),
            schedule=SampleSchedule(
                config=config,
                plans=_sample_plans(config, images, class_images),
                process_count=process_count,
                process_index=process_index,
            ),
        )


def _sample_plans(
    config: TuningConfig, images: ImageFolder, class_images: ClassImages | None
) -> tuple[SamplePlan, ...]:
    """Return the order of the images, and that of the class images where there are any."""
    samples = SamplePlan(
        seed=config.seed,
        stems=tuple(images.stems),
        center_crop=config.center_crop,
        random_flip=config.random_flip,
        repeats=config.repeats,
    )
    if class_images is None:
        return (samples,)
    stems = tuple(class_images.images.stems)
    return samples, replace(samples, stems=stems, repeats=1, kind=CLASS)


def usable_images(job: Job) -> ImageFolder:
    """List the images to train on.

    Raises:
        TrainingFailed: they cannot be used.
    """
    images = job.inputs.read_images(job.config.hold_out)
    problem = job.inputs.hold_out_problem(job.config.hold_out)
    if problem is not None:
        raise TrainingFailed(problem)
    problem = images.problem()
    if problem is not None:
        raise TrainingFailed(f"--instance_data_dir: {problem}")
    return images


def usable_captions(job: Job, images: ImageFolder) -> Captions | None:
    """Read the captions of `images`; None where none are asked for.

    Raises:
        TrainingFailed: they cannot be used.
    """
    if not job.config.captions:
        return None
    original = job.inputs.read_caption_images()
    problem = None if original is None else original.problem()
    if problem is not None:
        raise TrainingFailed(f"--caption_data_dir: {problem}")
    captions = Captions.read(images, original)
    if captions.problems:
        raise TrainingFailed(*captions.problems)
    return captions


def usable_class_images(config: TuningConfig, model: BaseModel) -> ClassImages | None:
    """Return the class images that `config` asks for; None without prior preservation.

    Raises:
        UsageError: they cannot be used, or cannot be generated here.
    """
    class_images = class_images_of(config)
    if class_images is None:
        return None
    problems = class_images.problems(generation_settings(config, model))
    option, has_gpu = "--prior-generation-precision", torch.cuda.is_available()
    fp16 = fp16_problem(option, generation_precision(config), has_gpu=has_gpu)
    if fp16 is not None:
        problems.append(fp16)
    if problems:
        raise UsageError(*problems)
    return class_images
