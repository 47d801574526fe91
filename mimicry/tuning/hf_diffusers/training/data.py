"""What a training shows: images, their captions, class images, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mimicry.common.errors import TrainingFailed, UsageError
from mimicry.study import Captions, ClassImages, ImageFolder
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.preflight import (
    class_images_of,
    generation_precision,
    generation_settings,
)
from mimicry.tuning.hf_diffusers.spec.trainer_args import TrainerArgs
from mimicry.tuning.hf_diffusers.training.device import fp16_problem
from mimicry.tuning.hf_diffusers.training.rng import CLASS, Sample, SamplePlan
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True)
class PromptPlan:
    """The distinct prompts of a run, the instance prompt first, with the rows of images and class samples."""

    texts: tuple[str, ...]
    of_image: tuple[int, ...]
    of_class: int

    @classmethod
    def make(
        cls, instance_prompt: str, captions: Sequence[str | None], class_prompt: str | None
    ) -> "PromptPlan":
        """Return the plan for images with these captions; one without gets the instance prompt."""
        of_image = [caption or instance_prompt for caption in captions]
        of_class = class_prompt or instance_prompt
        texts = list(dict.fromkeys([instance_prompt, *of_image, of_class]))
        rows = {text: row for row, text in enumerate(texts)}
        return cls(tuple(texts), tuple(rows[text] for text in of_image), rows[of_class])

    def index_of(self, sample: Sample) -> int:
        return self.of_class if sample.kind == CLASS else self.of_image[sample.image]


@dataclass(frozen=True, kw_only=True)
class SampleSchedule:
    """The forward passes of one process; `plans` order the images of the style, then class images, if any."""

    config: TuningConfig
    plans: tuple[SamplePlan, ...]
    process_count: int = 1
    process_index: int = 0

    @property
    def step_count(self) -> int:
        return self.config.step_count(len(self.plans[0].stems))

    @property
    def batch_count(self) -> int:
        """The forward passes of this process in the whole run."""
        return self.step_count * self.config.gradient_accumulation_steps

    @property
    def forward_batch_size(self) -> int:
        """The samples of one forward pass; with prior preservation half of them show class images."""
        return self.config.train_batch_size * len(self.plans)

    def first_sample(self, batch: int) -> int:
        """Return the first sample of this process's batch of that number; the processes take turns."""
        return (batch * self.process_count + self.process_index) * self.config.train_batch_size

    def batch_samples(self, first: int) -> tuple[Sample, ...]:
        """Return the samples of the batch that begins with index `first`; class samples come last."""
        indices = range(first, first + self.config.train_batch_size)
        return tuple(plan.sample(index) for plan in self.plans for index in indices)

    def own_indices(self) -> Iterator[int]:
        """Return the indices of the samples of the whole run that this process computes, in order."""
        for batch in range(self.batch_count):
            first = self.first_sample(batch)
            yield from range(first, first + self.config.train_batch_size)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The images of a training, captions and class images where asked for, prompts, and order of samples."""

    images: ImageFolder
    captions: Captions | None
    class_images: ClassImages | None
    prompts: PromptPlan
    schedule: SampleSchedule

    @property
    def class_paths(self) -> list[Path]:
        return [] if self.class_images is None else self.class_images.images.paths

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


def usable_images(args: TrainerArgs) -> ImageFolder:
    """List the images to train on; raises TrainingFailed where they cannot be used."""
    images = args.inputs.read_images(args.config.hold_out)
    if (problem := args.inputs.hold_out_problem(args.config.hold_out)) is not None:
        raise TrainingFailed(problem)
    if (problem := images.problem()) is not None:
        raise TrainingFailed(f"--instance_data_dir: {problem}")
    return images


def usable_captions(args: TrainerArgs, images: ImageFolder) -> Captions | None:
    """Read the captions of `images`, if asked for; raises TrainingFailed where they cannot be used."""
    if not args.config.captions:
        return None
    original = args.inputs.read_caption_images()
    if original is not None and (problem := original.problem()) is not None:
        raise TrainingFailed(f"--caption_data_dir: {problem}")
    captions = Captions.read(images, original)
    if captions.problems:
        raise TrainingFailed(*captions.problems)
    return captions


def usable_class_images(config: TuningConfig, model: BaseModel) -> ClassImages | None:
    """Return the class images, if asked for; raises UsageError where they cannot be used or generated."""
    class_images = class_images_of(config)
    if class_images is None:
        return None
    problems = class_images.problems(generation_settings(config, model))
    precision, has_gpu = generation_precision(config), torch.cuda.is_available()
    fp16 = fp16_problem("--prior-generation-precision", precision, has_gpu=has_gpu)
    if problems := [*problems, *([] if fp16 is None else [fp16])]:
        raise UsageError(*problems)
    return class_images
