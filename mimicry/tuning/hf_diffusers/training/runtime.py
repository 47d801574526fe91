"""What a training runs on: accelerate, its processes, the device, the precision."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.spec.preflight import report_problems
from mimicry.tuning.hf_diffusers.training.device import (
    fp16_problem,
    free_memory,
    peak_memory_bytes,
    training_dtype,
)
from mimicry.tuning.hf_diffusers.training.distributed import GROUP_OPTIONS, Processes
from mimicry.tuning.hf_diffusers.training.kernels import (
    AttentionChoice,
    AttentionShape,
    attention_by,
    choose_attention,
    compile_problem,
)
from mimicry.tuning.hf_diffusers.training.trackers import tracker_arguments
from mimicry.tuning.options.config import TuningConfig

# From it accelerate takes the device.
_DEVICE = "ACCELERATE_TORCH_DEVICE"


@dataclass(frozen=True)
class Runtime:
    """The accelerator of a training, the processes that it has joined, and the kernels of attention."""

    config: TuningConfig
    accelerator: Accelerator
    processes: Processes
    attention_choice: AttentionChoice = field(default_factory=AttentionChoice)

    @classmethod
    def start(cls, config: TuningConfig, output_dir: Path) -> "Runtime":
        """Switch torch to what `config` asks for, and join the processes of the training.

        Raises:
            UsageError: a device that is neither a CUDA GPU nor the CPU, a precision that it does not have,
                more processes than GPUs, or a missing library.
        """
        has_gpu = torch.cuda.is_available()
        if problems := _problems(config, has_gpu=has_gpu):
            raise UsageError(*problems)
        if config.deterministic:
            # cuBLAS reads this when it is first used.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            # It would fill all new memory first, for programs that read what they never wrote.
            switches: Any = torch.utils.deterministic
            switches.fill_uninitialized_memory = False
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        # Its default is on, which would encode images in less than fp32.
        torch.backends.cudnn.allow_tf32 = config.allow_tf32
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # Accelerate joins processes without GPUs only when it is told that the CPU is meant.
            cpu=config.num_processes > 1 and not has_gpu,
            kwargs_handlers=[GROUP_OPTIONS],
            **tracker_arguments(config, output_dir),
        )
        return cls(config, accelerator, Processes.from_accelerator(accelerator))

    def with_kernels(
        self, *, batch_size: int, head_count: int, token_count: int, head_width: int
    ) -> "Runtime":
        """Return this runtime with kernels checked for this attention; raises UsageError for wrong ones."""
        shape = AttentionShape(batch_size, head_count, token_count, head_width)
        choice = choose_attention(self.config, self.device, shape)
        if problems := list(filter(None, (choice.problem, compile_problem(self.config, self.device)))):
            raise UsageError(*problems)
        if choice.names:  # else nothing was computed
            self.free_memory()
        return replace(self, attention_choice=choice)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        # Paired processes call the CPU cpu:1. For torch that is another device, so weights would be copied to
        # other addresses in host memory, and a linear layer's rounding depends on the address.
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def dtype(self) -> torch.dtype:
        return training_dtype(self.config)

    def attention(self) -> AbstractContextManager[None]:
        """Return the context of forward and backward passes, in which attention uses the chosen kernels."""
        return attention_by(self.attention_choice.names)

    def free_memory(self) -> None:
        free_memory(self.device)

    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes(self.device)


def _problems(config: TuningConfig, *, has_gpu: bool) -> list[str]:
    problems = report_problems(config)
    if (other := _other_accelerator()) is not None:
        problems.append(
            f"training runs on CUDA GPUs, those of ROCm among them, and on the CPU, and this machine has a "
            f"device of the kind {other}; to train on the CPU, type {_DEVICE}=cpu before the command"
        )
    if fp16 := fp16_problem("--mixed-precision", config.mixed_precision, has_gpu=has_gpu):
        problems.append(fp16)
    if config.mixed_precision == "bf16" and has_gpu and not torch.cuda.is_bf16_supported(False):
        problems.append(
            f"--mixed-precision bf16 needs an Ampere GPU or a newer one, and this is a "
            f"{torch.cuda.get_device_name()}; type --mixed-precision fp16"
        )
    if has_gpu and config.num_processes > torch.cuda.device_count():
        count = torch.cuda.device_count()
        problems.append(
            f"--num-processes {config.num_processes} needs as many GPUs, and there are {count}; type "
            f"--num-processes {count}, and a larger --gradient-accumulation-steps for the same samples a step"
        )
    return problems


def _other_accelerator() -> str | None:
    """Return the kind of a device, such as mps or xpu, that accelerate would choose and nobody has tried."""
    kind = os.environ.get(_DEVICE, "").partition(":")[0]
    if not kind:
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = "cpu" if found is None else found.type
    return None if kind in ("cpu", "cuda") else kind
