"""What is checked of a configuration before the first GPU second, and what its adapters take on disk."""

import os

from mimicry.common.environment import processor_count, sees_gpu
from mimicry.common.files import existing_part
from mimicry.study.image_checks import bad_images
from mimicry.study.images import ImageFolder
from mimicry.tuning.hf_diffusers.base_model import TEXT_ENCODERS, BaseModel
from mimicry.tuning.hf_diffusers.class_settings import class_images_of, generation_settings
from mimicry.tuning.hf_diffusers.download import missing_model_problems
from mimicry.tuning.hf_diffusers.lora_modules import module_problems
from mimicry.tuning.hf_diffusers.metric_trackers import report_problems
from mimicry.tuning.hf_diffusers.optimizer_options import library_problems, optimizer_problems
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import LOG_BYTES

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
    """Return the number of an adapter's parameters, rounded up a little."""
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
