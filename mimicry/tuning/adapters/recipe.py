"""training_run.json: what an adapter was made from, how, and with what. No torch."""

import platform
import socket
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mimicry
from mimicry.common.errors import UsageError
from mimicry.common.files import canonical_json, sha256_file, sha256_text
from mimicry.tuning.base_model import BaseModel
from mimicry.tuning.options.config import OPTIONS, RESUME_LATEST, RESUME_NONE, TuningConfig

OWN_TRAINER = "mimicry"
_LIBRARIES = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow", "safetensors"),
    "bitsandbytes",
)


def trainer_identity(train_script: Path | None) -> str:
    """Return what tells a trainer from others in a recipe: ours by its name, a script by its content.

    Raises:
        UsageError: the script cannot be read.
    """
    if train_script is None:
        return OWN_TRAINER
    try:
        return f"{train_script.name} sha256:{sha256_file(train_script)}"
    except OSError as error:
        raise UsageError(f"--train-script {train_script} cannot be read: {error.strerror}") from error


def recipe(config: TuningConfig, base_model: BaseModel | None, trainer: str) -> dict[str, Any]:
    """Return what defines an adapter beside its images.

    Args:
        base_model: None for one that is not on this machine yet, of which the name alone is known.
        trainer: see `trainer_identity`.
    """
    values = asdict(config)
    unknown = {"name": config.pretrained_model_name_or_path}
    return {
        "options": {option.name: values[option.name] for option in OPTIONS if option.facts.in_recipe},
        "base_model": unknown if base_model is None else base_model.identity(),
        "trainer": trainer,
    }


def recipe_hash(value: Mapping[str, Any]) -> str:
    """Return the sha256 of a recipe; equal for equal recipes."""
    return sha256_text(canonical_json(value))


def recipe_differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Say in words in what a recorded recipe differs from the one asked for: empty when in nothing.

    An option that did not exist yet when the recipe was recorded counts as its default: what was done.
    """
    known, new = recorded.get("options"), asked["options"]
    defaults = {option.name: option.default for option in OPTIONS}
    old = defaults | known if isinstance(known, dict) else dict.fromkeys(new)
    words = [f"{name} {old[name]!r} -> {new[name]!r}" for name in new if old[name] != new[name]]
    if not _same_base_model(recorded.get("base_model"), asked["base_model"]):
        words.append("another base model")
    if recorded.get("trainer") != asked["trainer"]:
        words.append("another trainer")
    return words


def _same_base_model(recorded: Any, asked: Mapping[str, Any]) -> bool:
    """Compare what is known of the model that is asked for: of one to be downloaded, its name."""
    if not isinstance(recorded, dict):
        return False
    known_alone = set(asked) == {"name"}
    return (recorded.get("name") == asked["name"]) if known_alone else recorded == asked


def describe_run(
    config: TuningConfig, base_model: BaseModel, *, trainer: str, command: Iterable[str], notes: Iterable[str]
) -> dict[str, Any]:
    """Return the part of training_run.json that is known before training.

    Machine paths stand under `paths`, `command` and `host` only, which never leave this machine.
    """
    used = recipe(config, base_model, trainer)
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
        "versions": versions(),
        "warnings": list(notes),
    }


def versions() -> dict[str, str | bool | None]:
    """Return the versions of Python, of the libraries that matter, and of this project."""
    found: dict[str, str | bool | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return {**found, "mimicry": mimicry.__version__, **_git_state()}


def _git_state() -> dict[str, str | bool | None]:
    """Return commit and dirtiness of the checkout we run from; None where it is no checkout."""
    root = Path(mimicry.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": dirty}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
