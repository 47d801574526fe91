"""What one call of the trainer is asked to do, and what it found to do it with."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from mimicry.common.errors import BatchFault, TrainingFailed, UsageError
from mimicry.common.images import ImageFolder
from mimicry.tuning import base_model
from mimicry.tuning.base_model import BaseModel
from mimicry.tuning.config import TuningConfig
from mimicry.tuning.hf_diffusers.sd3.draws import SamplePlan
from mimicry.tuning.hf_diffusers.sd3.kernels import kernel_problems
from mimicry.tuning.hf_diffusers.sd3.lora import check_modules
from mimicry.tuning.hf_diffusers.sd3.optimizers import check_optimizer
from mimicry.tuning.hf_diffusers.sd3.processes import GROUP_OPTIONS, Processes
from mimicry.tuning.hf_diffusers.sd3.quantization import check_quantization
from mimicry.tuning.hf_diffusers.sd3.reports import tracker_arguments
from mimicry.tuning.reporting import report_problems

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The words of the command line: the hyper-parameters, where the images are, where the adapter goes.

    `eval_data_dir` holds the images that the loss is measured on before and after, if it is to be;
    `base_samples_dir` what the base model draws of validation prompts, for all artists of a study.
    """

    config: TuningConfig
    instance_data_dir: Path
    output_dir: Path
    notes: tuple[str, ...]
    command: tuple[str, ...]
    eval_data_dir: Path | None = None
    base_samples_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A job together with what was found for it: device, base model, images and the order of samples."""

    job: Job
    accelerator: Accelerator
    processes: Processes
    model: BaseModel
    images: ImageFolder
    samples: SamplePlan

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen weights."""
        return _DTYPES[self.job.config.mixed_precision]

    @property
    def step_count(self) -> int:
        """The optimizer steps of the whole run."""
        return self.job.config.step_count(len(self.images.names))

    @property
    def sample_count(self) -> int:
        """The samples of the whole run, over all processes."""
        return self.step_count * self.job.config.samples_per_step

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
                library that is missing, or layers or blocks that the model does not have.
            TrainingFailed: the images cannot be used.
            BatchFault: the base model cannot be had, or not be trained at this resolution.
        """
        accelerator = _accelerator(job.config, job.output_dir)
        processes = Processes.of(accelerator)
        with processes.failing_together():
            return cls._find(job, accelerator, processes)

    @classmethod
    def _find(cls, job: Job, accelerator: Accelerator, processes: Processes) -> "Setup":
        images = _usable_images(job.instance_data_dir)
        problems = kernel_problems(job.config, accelerator.device, _DTYPES[job.config.mixed_precision])
        if problems:
            raise UsageError(*problems)
        model = base_model.resolve(job.config)
        problems = model.problems(job.config.resolution)
        if problems:
            raise BatchFault(*problems)
        check_optimizer(job.config)
        check_quantization(job.config, accelerator.device)
        check_modules(model, job.config)
        samples = SamplePlan(
            seed=job.config.seed,
            stems=tuple(images.stems),
            center_crop=job.config.center_crop,
            random_flip=job.config.random_flip,
            repeats=job.config.repeats,
        )
        return cls(
            job=job,
            accelerator=accelerator,
            processes=processes,
            model=model,
            images=images,
            samples=samples,
        )


def _usable_images(folder: Path) -> ImageFolder:
    images = ImageFolder.read(folder)
    problem = images.problem()
    if problem is not None:
        raise TrainingFailed(f"--instance_data_dir: {problem}")
    return images


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
