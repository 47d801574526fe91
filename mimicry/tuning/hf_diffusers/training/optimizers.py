"""The optimizer and the schedule of its learning rate, from the options of the diffusers example."""

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.spec.preflight import (
    learning_rate,
    optimizer_libraries,
    optimizer_problems,
)
from mimicry.tuning.options.config import TuningConfig

# Where torch has AdamW as one kernel.
_FUSED_DEVICES = ("cpu", "cuda")
# Prodigy's rate is a factor of the step size that it finds; with less than this it hardly moves.
_LOW_FOR_PRODIGY = 0.1


def check_optimizer(config: TuningConfig) -> None:
    """Raise UsageError for all libraries that are missing, and all options that do not go together."""
    problems = optimizer_problems(config)
    for package, flag in optimizer_libraries(config).items():
        try:
            importlib.import_module(package)
        except ImportError as error:
            problems.append(
                f"{flag} needs {package}, which cannot be imported ({error}); type "
                f"pip install {package}, or leave {flag} out"
            )
    if problems:
        raise UsageError(*problems)


def optimizer_warnings(config: TuningConfig) -> list[str]:
    """Return what is allowed and most likely not meant."""
    rate = learning_rate(config)
    if config.optimizer == "prodigy" and rate <= _LOW_FOR_PRODIGY:
        return [
            f"with --optimizer prodigy a learning rate of {rate:g} hardly trains; 1 is usual, "
            f"type --learning-rate 1"
        ]
    return []


def make_optimizer(
    config: TuningConfig,
    parameters: Iterable[torch.nn.Parameter],
    device: torch.device,
) -> Optimizer:
    """Return the optimizer of `parameters`, which lie on `device`; raises as `check_optimizer`."""
    check_optimizer(config)
    common: dict[str, Any] = {
        "lr": learning_rate(config),
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    made: Optimizer
    if config.optimizer == "prodigy":
        made = importlib.import_module("prodigyopt").Prodigy(
            parameters,
            **common,
            beta3=config.prodigy_beta3,
            decouple=config.prodigy_decouple,
            use_bias_correction=config.prodigy_use_bias_correction,
            safeguard_warmup=config.prodigy_safeguard_warmup,
        )
    elif config.use_8bit_adam:
        made = importlib.import_module("bitsandbytes").optim.AdamW8bit(parameters, **common)
    else:
        fused = True if device.type in _FUSED_DEVICES else None
        made = torch.optim.AdamW(parameters, **common, fused=fused)
    return made


def make_scheduler(config: TuningConfig, optimizer: Optimizer, step_count: int) -> LambdaLR:
    """Return the schedule over `step_count` optimizer steps, on however many processes."""
    scheduler: LambdaLR = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=step_count,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
    return scheduler
