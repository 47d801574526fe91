"""Which options of the optimizer go together, and which libraries they need. No torch."""

import importlib.util

from mimicry.tuning.options.config import TuningConfig

# polynomial ends at this rate and refuses to begin below it.
_POLYNOMIAL_END = 1e-7


def optimizer_problems(config: TuningConfig) -> list[str]:
    """Return which options of the optimizer and the schedule do not go together."""
    problems = []
    if config.use_8bit_adam and config.optimizer != "AdamW":
        problems.append(
            f"--use-8bit-adam goes with --optimizer AdamW only, and --optimizer is {config.optimizer}"
        )
    rate = learning_rate(config)
    if config.lr_scheduler == "polynomial" and rate <= _POLYNOMIAL_END:
        problems.append(
            f"--lr-scheduler polynomial ends at a learning rate of {_POLYNOMIAL_END:g} and would begin at "
            f"{rate:g}; type a larger --learning-rate"
        )
    return problems


def learning_rate(config: TuningConfig) -> float:
    """Return the learning rate before any schedule; with scale_lr it grows with the samples of a step."""
    if not config.scale_lr:
        return config.learning_rate
    return config.learning_rate * config.samples_per_step


def optimizer_libraries(config: TuningConfig) -> dict[str, str]:
    """Return the packages that torch does not bring, with the flags that ask for them."""
    needed = {}
    if config.optimizer == "prodigy":
        needed["prodigyopt"] = "--optimizer prodigy"
    if config.use_8bit_adam:
        needed["bitsandbytes"] = "--use-8bit-adam"
    return needed


def library_problems(config: TuningConfig) -> list[str]:
    """Return which libraries that `config` asks for are not installed; none is imported."""
    needed = list(optimizer_libraries(config).items())
    if config.quantize_base != "none":
        needed.append(("bitsandbytes", f"--quantize-base {config.quantize_base}"))
    return [
        f"{flag} needs {package}, which is not installed; type pip install {package}, or leave "
        f"{flag.split()[0]} out"
        for package, flag in needed
        if importlib.util.find_spec(package) is None
    ]
