"""What one call of the trainer is asked to do, and what it found to do it with."""

import os
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

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The words of the command line: the hyper-parameters, where the images are, where the adapter goes.

    `eval_data_dir` holds the images that the loss is measured on before and after, if it is to be. Images
    whose stems are in `leave_out` are used for neither.
    """

    config: TuningConfig
    instance_data_dir: Path
    output_dir: Path
    notes: tuple[str, ...]
    command: tuple[str, ...]
    eval_data_dir: Path | None = None
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A job together with what was found for it: device, base model, images and the order of samples."""

    job: Job
    accelerator: Accelerator
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
        return self.job.config.step_count(len(self.images.names), self.accelerator.num_processes)

    @property
    def samples_per_step(self) -> int:
        """The samples of one optimizer step."""
        config = self.job.config
        return config.gradient_accumulation_steps * config.train_batch_size

    @property
    def sample_count(self) -> int:
        """The samples of the whole run."""
        return self.step_count * self.samples_per_step

    @classmethod
    def prepare(cls, job: Job) -> "Setup":
        """Find everything that the job needs.

        Raises:
            UsageError: several processes, a precision or kernel that the device does not have, an optimizer
                whose library is missing, or layers or blocks that the model does not have.
            TrainingFailed: the images cannot be used.
            BatchFault: the base model cannot be had, or not be trained at this resolution.
        """
        images = _usable_images(job.instance_data_dir, job.leave_out)
        accelerator = _accelerator(job.config)
        model = base_model.resolve(job.config)
        problems = model.problems(job.config.resolution)
        if problems:
            raise BatchFault(*problems)
        check_optimizer(job.config, accelerator.num_processes)
        check_modules(model, job.config)
        samples = SamplePlan(
            seed=job.config.seed,
            stems=tuple(images.stems),
            center_crop=job.config.center_crop,
            random_flip=job.config.random_flip,
            repeats=job.config.repeats,
        )
        return cls(job=job, accelerator=accelerator, model=model, images=images, samples=samples)


def _usable_images(folder: Path, leave_out: tuple[str, ...]) -> ImageFolder:
    images = ImageFolder.read(folder).without(leave_out)
    problem = images.problem()
    if problem is not None:
        raise TrainingFailed(f"--instance_data_dir: {problem}")
    return images


def _accelerator(config: TuningConfig) -> Accelerator:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "several processes are not supported yet; type accelerate launch --num_processes 1 ..."
        )
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
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    problems = kernel_problems(config, accelerator.device, _DTYPES[config.mixed_precision])
    if problems:
        raise UsageError(*problems)
    return accelerator
