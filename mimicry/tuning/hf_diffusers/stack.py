"""What this stack knows of its adapters, and what a configuration asks for besides the base model.

Libraries, class images, room on the disk: all of it is checked before the first GPU second. No torch.
"""

import importlib.util
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mimicry.common.environment import processor_count, sees_gpu
from mimicry.common.files import existing_part
from mimicry.study.class_images import ClassImages
from mimicry.study.image_checks import bad_images
from mimicry.study.images import ImageFolder
from mimicry.study.sample_files import DEFAULT_GUIDANCE, DEFAULT_STEPS
from mimicry.tuning.adapters.judge import AdapterSpec
from mimicry.tuning.adapters.recipe import recipe, trainer_identity
from mimicry.tuning.hf_diffusers.spec.base_model import TEXT_ENCODERS, BaseModel, missing_model_problems
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT, module_problems
from mimicry.tuning.options.config import REPORT_ALL, REPORT_NONE, REPORTS, TuningConfig
from mimicry.tuning.stacks import StackTraits

_TRACKERS = tuple(name for name in REPORTS if name not in (REPORT_NONE, REPORT_ALL))

# polynomial ends at this rate and refuses to begin below it.
_POLYNOMIAL_END = 1e-7

# Layers and width of SD3.5 Large, for a model that is not here yet.
_DEFAULT_GEOMETRY = (38, 2432)


class Traits(StackTraits):
    """LoRAs of Stable Diffusion 3.x. The command takes {options}, so there is always a configuration."""

    def trainer(self, script: Path | None, train_script: Path | None) -> str:
        """Return our own trainer's name, whatever started it; or name and hash of --train-script."""
        return trainer_identity(train_script)

    def adapter_spec(self, config: TuningConfig | None, trainer: str) -> AdapterSpec:
        assert config is not None
        model = BaseModel.find(config)
        identity = None if model is None else model.identity()
        return AdapterSpec(config.rank, recipe(config, identity, trainer), class_images_of(config))

    def problems(self, config: TuningConfig | None, *, network: bool) -> list[str]:
        """Return all reasons why this machine cannot train with `config`.

        Without `network`, a base model that is not on this machine is not looked for on the Hub, and class
        images are not decoded.
        """
        assert config is not None
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

    def warnings(self, config: TuningConfig | None) -> list[str]:
        assert config is not None
        if config.num_processes == 1 or sees_gpu():
            return []
        return [
            f"--num-processes {config.num_processes} without a GPU: all of them share the "
            f"{processor_count()} processors of this machine, which is no faster than one"
        ]

    def disk_bytes(self, config: TuningConfig | None, adapter_count: int) -> int:
        assert config is not None
        count = _parameter_count(BaseModel.find(config), config)
        weights = adapter_count * count * (4 if config.upcast_before_saving else 2)
        # Parameters and two moments of AdamW in fp32; a new checkpoint is there before the oldest one goes.
        checkpoints = (config.checkpoints_total_limit + 1) * 3 * 4 * count
        return super().disk_bytes(config, adapter_count) + weights + checkpoints

    def host_bytes(self, config: TuningConfig | None) -> int:
        """Return the size of the largest part of the base model, for each process."""
        assert config is not None
        model = BaseModel.find(config)
        if model is None:
            return 0
        most = max(model.weight_bytes(name, config.variant) for name in ("transformer", *TEXT_ENCODERS))
        return config.num_processes * most


TRAITS = Traits(hub_prefix="sd35-lora", adapter_format=ADAPTER_FORMAT)


def _parameter_count(model: BaseModel | None, config: TuningConfig) -> int:
    """Return the number of an adapter's parameters, rounded up a little."""
    layers, width = _DEFAULT_GEOMETRY
    # `BaseModel.problems` says what is wrong with a model.
    with suppress(OSError, ValueError, KeyError, TypeError):
        if model is not None:
            transformer = model.config_of("transformer")
            layers = int(transformer["num_layers"])
            width = int(transformer["num_attention_heads"]) * int(transformer["attention_head_dim"])
    # Eight square projections a block, and two factors each.
    return layers * 8 * 2 * width * config.rank


def class_images_of(config: TuningConfig) -> ClassImages | None:
    """Return the class images that `config` asks for; None without prior preservation."""
    if config.class_data_dir is None:
        return None
    return ClassImages(Path(config.class_data_dir).absolute(), config.num_class_images)


def generation_settings(config: TuningConfig, model: BaseModel) -> dict[str, Any]:
    """Return what determines a generated image, except its index and the size of its batch."""
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
    found = []
    for name in _TRACKERS:
        with suppress(PackageNotFoundError):
            version(name)
            found.append(name)
    return found


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
    return config.learning_rate * (config.samples_per_step if config.scale_lr else 1)


def optimizer_libraries(config: TuningConfig) -> dict[str, str]:
    """Return the packages that torch does not bring, with the flags that ask for them."""
    return {
        **({"prodigyopt": "--optimizer prodigy"} if config.optimizer == "prodigy" else {}),
        **({"bitsandbytes": "--use-8bit-adam"} if config.use_8bit_adam else {}),
    }


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
