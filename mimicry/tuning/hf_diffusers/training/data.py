"""What a training shows: images, their captions, class images, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mimicry.common.errors import TrainingFailed, UsageError
from mimicry.study import Captions, ClassImages, ImageFolder, ImageRecord, refuse_changed_images
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
    """The prompts of a run.

    `texts` are distinct, the first one is the instance prompt. `of_image` has a row of `texts` for each
    image, `of_class` the row for class samples.
    """

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

    @property
    def class_text(self) -> str:
        """The prompt of class samples."""
        return self.texts[self.of_class]

    def index_of(self, sample: Sample) -> int:
        """Return the row of `texts` for `sample`."""
        return self.of_class if sample.kind == CLASS else self.of_image[sample.image]


@dataclass(frozen=True, kw_only=True)
class SampleSchedule:
    """The forward passes of one process of a run.

    `plans` are the orders of samples: of the images that the style is learned from, then of class images, if
    there are any.
    """

    config: TuningConfig
    plans: tuple[SamplePlan, ...]
    process_count: int = 1
    process_index: int = 0

    @property
    def step_count(self) -> int:
        """The optimizer steps of the whole run."""
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
        """Return the index of the first sample of this process's batch of that number, counted from 0.

        The processes take turns, batch by batch: together they go through the samples as one would.
        """
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


def usable_images(args: TrainerArgs) -> ImageFolder:
    """List the images to train on.

    Raises:
        TrainingFailed: they cannot be used.
    """
    images = args.inputs.read_images(args.config.hold_out)
    problem = args.inputs.hold_out_problem(args.config.hold_out)
    if problem is not None:
        raise TrainingFailed(problem)
    problem = images.problem()
    if problem is not None:
        raise TrainingFailed(f"--instance_data_dir: {problem}")
    return images


def usable_captions(args: TrainerArgs, images: ImageFolder) -> Captions | None:
    """Read the captions of `images`; None where none are asked for.

    Raises:
        TrainingFailed: they cannot be used.
    """
    if not args.config.captions:
        return None
    original = args.inputs.read_caption_images()
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
