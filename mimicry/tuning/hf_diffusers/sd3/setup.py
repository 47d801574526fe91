"""What one call of the trainer is asked to do, and what it found to do it with."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from mimicry.common.errors import BatchFault, TrainingFailed, UsageError
from mimicry.study.captions import Captions
from mimicry.study.class_images import ClassImages
from mimicry.study.images import ImageFolder
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.class_settings import (
    class_images_of,
    generation_precision,
    generation_settings,
)
from mimicry.tuning.hf_diffusers.job import Job
from mimicry.tuning.hf_diffusers.metric_trackers import report_problems
from mimicry.tuning.hf_diffusers.sd3.lora import check_modules
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptPlan
from mimicry.tuning.hf_diffusers.sd3.quantization import check_quantization
from mimicry.tuning.hf_diffusers.training.distributed import GROUP_OPTIONS, Processes
from mimicry.tuning.hf_diffusers.training.kernels import kernel_problems
from mimicry.tuning.hf_diffusers.training.optimizers import check_optimizer
from mimicry.tuning.hf_diffusers.training.rng import CLASS, SamplePlan
from mimicry.tuning.hf_diffusers.training.trackers import tracker_arguments
from mimicry.tuning.options.config import TuningConfig

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A job together with what was found for it: device, base model, images and the order of samples.

    `captions` is None where none are asked for, `class_images` without prior preservation. `plans` are the
    orders of samples: of the images that the style is learned from, then of class images, if there are any.
    """

    job: Job
    accelerator: Accelerator
    processes: Processes
    model: BaseModel
    images: ImageFolder
    captions: Captions | None
    class_images: ClassImages | None
    prompts: PromptPlan
    plans: tuple[SamplePlan, ...]

    @property
    def samples(self) -> SamplePlan:
        """The order of the images that the style is learned from."""
        return self.plans[0]

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        # To torch, weights move from cpu to cpu:1, as paired processes call it: copies in host memory, which
        # lie at other addresses, by which a linear layer rounds.
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen weights."""
        return _DTYPES[self.job.config.mixed_precision]

    @property
    def step_count(self) -> int:
        """The optimizer steps of the whole run."""
        return self.job.config.step_count(len(self.images.names))

    @property
    def forward_batch_size(self) -> int:
        """The samples of one forward pass; with prior preservation half of them show class images."""
        return self.job.config.train_batch_size * len(self.plans)

    def first_sample(self, batch: int) -> int:
        """Return the index of the first sample of this process's batch of that number, counted from 0.

        The processes take turns, batch by batch: together they go through the samples as one would.
        """
        return (batch * self.processes.count + self.processes.index) * self.job.config.train_batch_size

    def own_samples(self) -> Iterator[int]:
        """Return the indices of the samples of the whole run that this process computes, in order."""
        config = self.job.config
        for batch in range(self.step_count * config.gradient_accumulation_steps):
            first = self.first_sample(batch)
            yield from range(first, first + config.train_batch_size)

    @classmethod
    def prepare(cls, job: Job) -> "Setup":
        """Find everything that the job needs.

        Raises:
            UsageError: a precision or kernel that the device does not have, more processes than GPUs, a
                library that is missing, layers or blocks that the model does not have, or a folder of class
                images that cannot be used.
            TrainingFailed: the images or their captions cannot be used.
            BatchFault: the base model cannot be had, or not be trained at this resolution.
        """
        accelerator = _accelerator(job.config, job.inputs.output_dir)
        processes = Processes.of(accelerator)
        with processes.failing_together():
            return cls._find(job, accelerator, processes)

    @classmethod
    def _find(cls, job: Job, accelerator: Accelerator, processes: Processes) -> "Setup":
        config = job.config
        images = _usable_images(job)
        captions = _usable_captions(job, images)
        problems = kernel_problems(config, accelerator.device, _DTYPES[config.mixed_precision])
        if problems:
            raise UsageError(*problems)
        model = BaseModel.resolve(config)
        problems = model.problems(config.resolution)
        if problems:
            raise BatchFault(*problems)
        check_optimizer(config)
        check_quantization(config, accelerator.device)
        check_modules(model, config)
        class_images = _usable_class_images(config, model)
        samples = SamplePlan(
            seed=config.seed,
            stems=tuple(images.stems),
            center_crop=config.center_crop,
            random_flip=config.random_flip,
            repeats=config.repeats,
        )
        plans = [samples]
        if class_images is not None:
            stems = tuple(class_images.images.stems)
            plans.append(replace(samples, stems=stems, repeats=1, kind=CLASS))
        texts = [None] * len(images.names) if captions is None else captions.texts
        return cls(
            job=job,
            accelerator=accelerator,
            processes=processes,
            model=model,
            images=images,
            captions=captions,
            class_images=class_images,
            prompts=PromptPlan.make(config.instance_prompt, texts, config.class_prompt),
            plans=tuple(plans),
        )


def _usable_images(job: Job) -> ImageFolder:
    images = job.inputs.read_images()
    problem = images.problem()
    if problem is not None:
        raise TrainingFailed(f"--instance_data_dir: {problem}")
    return images


def _usable_captions(job: Job, images: ImageFolder) -> Captions | None:
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


def _usable_class_images(config: TuningConfig, model: BaseModel) -> ClassImages | None:
    class_images = class_images_of(config)
    if class_images is None:
        return None
    problems = class_images.problems(generation_settings(config, model))
    if generation_precision(config) == "fp16" and not torch.cuda.is_available():
        problems.append("--prior_generation_precision fp16 needs a GPU; on the CPU type bf16 or fp32")
    if problems:
        raise UsageError(*problems)
    return class_images


def _accelerator(config: TuningConfig, output_dir: Path) -> Accelerator:
    if config.deterministic:
        # cuBLAS reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    # Its default is on, which would encode images in less than fp32.
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    cuda = torch.cuda.is_available()
    if config.mixed_precision == "fp16" and not cuda:
        raise UsageError("--mixed_precision fp16 needs a GPU; on the CPU type --mixed_precision bf16 or no")
    if config.mixed_precision == "bf16" and cuda and not torch.cuda.is_bf16_supported(False):
        raise UsageError(
            f"--mixed_precision bf16 needs an Ampere GPU or a newer one, and this is a "
            f"{torch.cuda.get_device_name()}; type --mixed_precision fp16"
        )
    if cuda and config.num_processes > torch.cuda.device_count():
        raise UsageError(
            f"--num_processes {config.num_processes} needs as many GPUs, and there are "
            f"{torch.cuda.device_count()}; type --num_processes {torch.cuda.device_count()}, and a larger "
            f"--gradient_accumulation_steps for the same samples a step"
        )
    problems = report_problems(config)
    if problems:
        raise UsageError(*problems)
    return Accelerator(
        mixed_precision=config.mixed_precision,
        # Accelerate joins processes without GPUs only when it is told that the CPU is meant.
        cpu=config.num_processes > 1 and not cuda,
        kwargs_handlers=[GROUP_OPTIONS],
        **tracker_arguments(config, output_dir),
    )
