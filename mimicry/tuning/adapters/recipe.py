"""The recipe of an adapter: everything that defines it beside its images."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.common.files import canonical_json, sha256_file, sha256_text
from mimicry.tuning.options.config import OPTIONS, TuningConfig

OWN_TRAINER = "mimicry"


def trainer_identity(train_script: Path | None) -> str:
    """Return what tells a trainer from others in a recipe: ours by its name, a script by its content."""
    if train_script is None:
        return OWN_TRAINER
    try:
        return f"{train_script.name} sha256:{sha256_file(train_script)}"
    except OSError as error:
        raise UsageError(f"--train-script {train_script} cannot be read: {error.strerror}") from error


def recipe(config: TuningConfig, base_model: Mapping[str, Any] | None, trainer: str) -> dict[str, Any]:
    """Return what defines an adapter beside its images; `base_model` is None when its name alone is known."""
    values = asdict(config)
    used = [
        option
        for option in OPTIONS
        if option.facts.in_recipe and not (option.facts.added_later and values[option.name] == option.default)
    ]
    return {
        "options": {option.name: values[option.name] for option in used},
        "base_model": base_model or {"name": config.pretrained_model_name_or_path},
        "trainer": trainer,
    }


def recorded_step_count(options: Mapping[str, Any] | None, image_count: int) -> int | None:
    """Return the optimizer steps that a training with recorded options takes; None when they do not tell."""
    # Paths of the machine are recorded as None.
    known = {option.name: (options or {}).get(option.name) for option in OPTIONS}
    given = {name: value for name, value in known.items() if value is not None}
    try:
        return TuningConfig(**given).step_count(image_count) if given else None
    except (UsageError, TypeError):  # of another version, or not ours
        return None


def recipe_hash(value: Mapping[str, Any]) -> str:
    """Return the sha256 of a recipe; equal for equal recipes."""
    return sha256_text(canonical_json(value))


def recipe_differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Say in words in what a recorded recipe differs from the one asked for: empty when in nothing."""
    changed = option_differences(recorded, asked)
    words = [f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items()]
    if other_base_model(recorded, asked):
        words.append("another base model")
    if other_trainer(recorded, asked):
        words.append("another trainer")
    return words


def option_differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the recorded value and the one asked for of each option that differs, by name."""
    # An option that did not exist yet when the recipe was recorded counts as its default: what was done.
    new = complete_options(asked) or {}
    known = complete_options(recorded) or {}
    return {name: (known.get(name), new[name]) for name in new if known.get(name) != new[name]}


def complete_options(recorded: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of a recorded recipe, with the defaults of those that it lacks; None without any."""
    known = recorded.get("options")
    if not isinstance(known, dict):
        return None
    return {option.name: option.default for option in OPTIONS if option.facts.in_recipe} | known


def other_base_model(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Compare what is known of the model that is asked for: of one to be downloaded, its name."""
    known, model = recorded.get("base_model"), asked["base_model"]
    if not isinstance(known, dict):
        return True
    return bool(known.get("name") != model["name"] if set(model) == {"name"} else known != model)


def other_trainer(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return bool(recorded.get("trainer") != asked["trainer"])
