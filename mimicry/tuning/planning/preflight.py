"""What is checked before the first GPU second, for the whole batch. No torch."""

import importlib.util
import os
import shutil
from pathlib import Path

from mimicry.study.image_checks import bad_images
from mimicry.study.images import ImageFolder
from mimicry.tuning.base_model import BaseModel, access_problem
from mimicry.tuning.class_images import ClassImages, generation_settings
from mimicry.tuning.hub.preflight import hub_is_offline, read_access_error
from mimicry.tuning.hub.token import token_problems
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.reporting import report_problems

# Layers and width of SD3.5 Large, for a model that is not here yet.
_DEFAULT_GEOMETRY = (38, 2432)
_LOG_BYTES = 4 << 20


def batch_problems(
    config: TuningConfig | None,
    output_root: Path,
    artist_count: int,
    *,
    uploads: bool,
    network: bool = True,
) -> list[str]:
    """Return everything that forbids training `artist_count` adapters below `output_root`.

    `config` is None for a stack that takes no options: its base model is its own affair. Without `network`,
    a base model that is not on this machine is not looked for on the Hub, and class images are not decoded.
    """
    model = None if config is None else BaseModel.find(config)
    if config is None:
        model_problems = []
    elif model is None:
        model_problems = _missing_model_problems(config, network)
    else:
        model_problems = model.problems(config.resolution)
    return [
        *(token_problems() if uploads else []),
        *([] if config is None else report_problems(config)),
        *model_problems,
        *_package_problems(config),
        *([] if config is None else _class_problems(config, model, readable=network)),
        *_disk_problems(model, config, output_root, artist_count),
    ]


def _package_problems(config: TuningConfig | None) -> list[str]:
    if config is None or config.quantize_base == "none":
        return []
    if importlib.util.find_spec("bitsandbytes") is not None:
        return []
    return [
        f"--quantize-base {config.quantize_base} needs bitsandbytes, which is not installed; type "
        f"pip install bitsandbytes, or leave --quantize-base out"
    ]


def _missing_model_problems(config: TuningConfig, network: bool) -> list[str]:
    name = config.pretrained_model_name_or_path
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return [f"--pretrained-model-name-or-path {name}: there is no such folder"]
    if not network:
        return []
    if hub_is_offline():
        return [f"base model {name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it"]
    error = read_access_error(name)
    return [] if error is None else [access_problem(name, error)]


def _class_problems(config: TuningConfig, model: BaseModel | None, *, readable: bool) -> list[str]:
    class_images = ClassImages.of(config)
    if class_images is None:
        return []
    problems = class_images.problems(None if model is None else generation_settings(config, model))
    if readable and not problems:
        problems = [image.problem for image in bad_images([ImageFolder.read(class_images.folder)])]
    if class_images.missing() and not os.access(_existing_part(class_images.folder), os.W_OK):
        problems.append(
            f"--class-data-dir {class_images.folder} has too few images and is not writable; name another"
        )
    return problems


def _existing_part(folder: Path) -> Path:
    """Return the nearest folder above that is there; below it the others can be made."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _disk_problems(
    model: BaseModel | None, config: TuningConfig | None, output_root: Path, artist_count: int
) -> list[str]:
    needed = needed_bytes(model, config, artist_count)
    folder = _existing_part(output_root)
    problems = []
    if not os.access(folder, os.W_OK):
        problems.append(f"{folder} is not writable; name another tree with --data-root")
    free = shutil.disk_usage(folder).free
    if free < needed:
        problems.append(
            f"{artist_count} adapters need about {needed / 1e9:.2f} GB on the disk of {folder}, which has "
            f"{free / 1e9:.2f} GB free; make room, or train fewer at once with --style or --artist"
        )
    return problems


def needed_bytes(model: BaseModel | None, config: TuningConfig | None, artist_count: int) -> int:
    """Return what `artist_count` adapters take on disk, the checkpoints of the one in training included."""
    logs = artist_count * _LOG_BYTES
    if config is None:
        return logs
    count = _parameter_count(model, config)
    weights = artist_count * count * (4 if config.upcast_before_saving else 2)
    # Parameters and two moments of AdamW in fp32; a new checkpoint is there before the oldest one goes.
    checkpoints = (config.checkpoints_total_limit + 1) * 3 * 4 * count
    return logs + weights + checkpoints


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
