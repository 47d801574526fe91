"""What is known of a training before it begins, for training_run.json. No torch."""

import platform
import socket
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import mimicry
from mimicry.common.environment import versions
from mimicry.tuning.adapters.recipe import recipe, recipe_hash
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.options.config import RESUME_LATEST, RESUME_NONE, TuningConfig


def describe_run(
    config: TuningConfig, base_model: BaseModel, *, trainer: str, command: Iterable[str], notes: Iterable[str]
) -> dict[str, Any]:
    """Return the part of training_run.json that is known before training.

    Machine paths stand under `paths`, `command` and `host` only, which never leave this machine.
    """
    used = recipe(config, base_model.identity(), trainer)
    name = config.pretrained_model_name_or_path
    local = base_model.name is None
    resume = config.resume_from_checkpoint
    return {
        "schema": 1,
        "recipe": used,
        "recipe_hash": recipe_hash(used),
        "options": asdict(config)
        | {
            "pretrained_model_name_or_path": None if local else name,
            "cache_dir": None,
            "prompt_cache_dir": None,
            "logging_dir": None,
            "class_data_dir": None,
            "resume_from_checkpoint": resume if resume in (RESUME_LATEST, RESUME_NONE) else None,
        },
        "base_model": {"name": base_model.name, "revision": base_model.revision, **base_model.identity()},
        "command": list(command),
        "paths": {
            "base_model": str(base_model.folder),
            "pretrained_model_name_or_path": name,
            "cache_dir": config.cache_dir,
            "prompt_cache_dir": config.prompt_cache_dir,
            "logging_dir": config.logging_dir,
            "class_data_dir": config.class_data_dir,
        },
        "host": {"name": socket.gethostname(), "platform": platform.platform()},
        "versions": versions(mimicry),
        "warnings": list(notes),
    }
