"""What a configuration asks for besides the base model: libraries, class images, room on the disk. No torch.

All of it is checked before the first GPU second.
"""

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mimicry.common.environment import processor_count, sees_gpu
from mimicry.common.files import existing_part
from mimicry.study import DEFAULT_GUIDANCE, DEFAULT_STEPS, ClassImages, ImageFolder, bad_images
from mimicry.tuning.hf_diffusers.spec.base_model import TEXT_ENCODERS, BaseModel, missing_model_problems
from mimicry.tuning.hf_diffusers.spec.lora_modules import module_problems
from mimicry.tuning.options.config import REPORT_ALL, REPORT_NONE, REPORTS, TuningConfig
from mimicry.tuning.stacks import LOG_BYTES

_TRACKERS = tuple(name for name in REPORTS if name not in (REPORT_NONE, REPORT_ALL))

# polynomial ends at this rate and refuses to begin below it.
_POLYNOMIAL_END = 1e-7

# Layers and width of SD3.5 Large, for a model that is not here yet.
_DEFAULT_GEOMETRY = (38, 2432)


def config_problems(config: TuningConfig, *, network: bool = True) -> list[str]:
    """Return all reasons why this machine cannot train with `config`.

    Without `network`, a base model that is not on this machine is not looked for on the Hub, and class images
    are not decoded.
    """
    model = BaseModel.find(config)
    return [
        *report_problems(config),
        *(
            missing_model_problems(config, network=network)
            if model is None
            else [*model.problems(config.resolution), *module_problems(model, config)]
        ),
        *optimizer_problems(config),
        *library_problems(config),
        *_class_problems(config, model, readable=network),
    ]


def config_warnings(config: TuningConfig) -> list[str]:
    """Return what is allowed on this machine and most likely not meant."""
    if config.num_processes == 1 or sees_gpu():
        return []
    return [
        f"--num-processes {config.num_processes} without a GPU: all of them share the {processor_count()} "
        f"processors of this machine, which is no faster than one"
    ]


def needed_bytes(config: TuningConfig, adapter_count: int) -> int:
    """Return how many bytes the adapters take on disk, with the checkpoints of one in training."""
    logs = adapter_count * LOG_BYTES
    count = _parameter_count(BaseModel.find(config), config)
    weights = adapter_count * count * (4 if config.upcast_before_saving else 2)
    # Parameters and two moments of AdamW in fp32; a new checkpoint is there before the oldest one goes.
    checkpoints = (config.checkpoints_total_limit + 1) * 3 * 4 * count
    return logs + weights + checkpoints


def host_bytes(config: TuningConfig) -> int:
    """Return how many bytes of weights a training reads at once; 0 for a model that is not here yet."""
    model = BaseModel.find(config)
    if model is None:
        return 0
    most = max(model.weight_bytes(name, config.variant) for name in ("transformer", *TEXT_ENCODERS))
    return config.num_processes * most


def _parameter_count(model: BaseModel | None, config: TuningConfig) -> int:
    layers, width = _DEFAULT_GEOMETRY
    if model is not None:
        try:
            transformer = model.config_of("transformer")
            layers = int(transformer["num_layers"])
            width = int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # `BaseModel.problems` says what is wrong with it
    # Eight square projections a block, and two factors each.
    return layers * 8 * 2 * width * config.rank


def class_images_of(config: TuningConfig) -> ClassImages | None:
    """Return the class images that `config` asks for; None without prior preservation."""
    if config.class_data_dir is None:
        return None
    return ClassImages(Path(config.class_data_dir).absolute(), config.num_class_images)


def generation_settings(config: TuningConfig, model: BaseModel) -> dict[str, Any]:
    """Return everything that determines a generated image, except its index.

    How many are generated at a time may change its last bits, and is not compared.
    """
    return {
        "prompt": config.class_prompt,
        "max_sequence_length": config.max_sequence_length,
        "base_model": model.identity(),
        "variant": config.variant,
        "resolution": config.resolution,
        "quantize_base": config.quantize_base,
        "steps": DEFAULT_STEPS,
        "guidance": DEFAULT_GUIDANCE,
        "seed": config.seed,
        "precision": generation_precision(config),
    }


def generation_precision(config: TuningConfig) -> str:
    """Return the precision in which class images are generated: fp32, fp16 or bf16."""
    asked = config.prior_generation_precision or config.mixed_precision
    return "fp32" if asked == "no" else asked


def chosen_trackers(config: TuningConfig) -> list[str]:
    """Return the trackers that `config` asks for: of all of them, those that are installed."""
    if config.report_to == REPORT_NONE:
        return []
    return installed_trackers() if config.report_to == REPORT_ALL else [config.report_to]


def installed_trackers() -> list[str]:
    """Return the trackers whose library is installed; a folder of that name is not one."""
    return [name for name in _TRACKERS if _is_installed(name)]


def report_problems(config: TuningConfig) -> list[str]:
    """Return why metrics cannot be sent where `config` says."""
    if config.report_to == REPORT_NONE:
        return []
    found = installed_trackers()
    if found if config.report_to == REPORT_ALL else config.report_to in found:
        return []
    missing = " or ".join(_TRACKERS) if config.report_to == REPORT_ALL else config.report_to
    return [
        f"--report-to {config.report_to}: {missing} is not installed; type pip install 'mimicry[reports]', "
        f"or leave --report-to out"
    ]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


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


def _class_problems(config: TuningConfig, model: BaseModel | None, *, readable: bool) -> list[str]:
    class_images = class_images_of(config)
    if class_images is None:
        return []
    problems = class_images.problems(None if model is None else generation_settings(config, model))
    if readable and not problems:
        problems = [image.problem for image in bad_images([ImageFolder.read(class_images.folder)])]
    if class_images.missing() and not os.access(existing_part(class_images.folder), os.W_OK):
        problems.append(
            f"--class-data-dir {class_images.folder} has too few images and is not writable; name another"
        )
    return problems
