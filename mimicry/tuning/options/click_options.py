"""The options of the programs, as click options: hyper-parameters, and what several programs share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mimicry.common.errors import UsageError
from mimicry.study.matrix import Selection
from mimicry.study.tree import ALL, DEFAULT_DATA_ROOT, NONE, variant_problem
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.declarations import Option
from mimicry.tuning.options.study_defaults import DATA_ROOT, STUDY_PATH, STUDY_VARIANT

Command = Callable[..., Any]
DEFAULT_STACK = "hf_diffusers"
STUDY, ARTISTS, CONDITIONS, HUB, CALL = "Study", "Artists", "Conditions", "Hugging Face Hub", "This call"


def options(*decorators: Decorator) -> Decorator:
    """Return a decorator that gives a command several options, in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _checked_variants(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    problems = [variant_problem(name) for name in names if name not in (NONE, ALL)]
    if any(problems):
        raise UsageError(*(f"--variant {problem}" for problem in problems if problem))
    return names


data_root_option = option(
    "--data-root",
    DATA_ROOT,
    topic=STUDY,
    type=click.Path(path_type=Path),
    default=DEFAULT_DATA_ROOT,
    help="Root of the study's tree.",
)
tree_options = options(
    data_root_option,
    option(
        "--study",
        STUDY_PATH,
        topic=STUDY,
        type=click.Path(path_type=Path),
        help="File with conditions, recipe and variants; by default study.toml in the data root, "
        "where it exists. none: no file.",
    ),
    option(
        "--stack",
        topic=STUDY,
        from_file=True,
        default=DEFAULT_STACK,
        help="Way of training: a folder with a runner_config.json.",
    ),
    option(
        "--variant",
        STUDY_VARIANT,
        topic=STUDY,
        multiple=True,
        callback=_checked_variants,
        help="Only this variant or replicate of the study, below STACK@NAME; none: the study without these; "
        "all; may be repeated. A new name is a study beside it, with a recipe of its own.",
    ),
)
selection_options = options(
    option(
        "--split",
        "splits",
        topic=ARTISTS,
        from_file=True,
        multiple=True,
        help="Only of this split; may be repeated.",
    ),
    option(
        "--style",
        "styles",
        topic=ARTISTS,
        from_file=True,
        multiple=True,
        help="Only of this style; may be repeated.",
    ),
    option(
        "--artist",
        "artists",
        topic=ARTISTS,
        from_file=True,
        multiple=True,
        help="Only this artist; may be repeated.",
    ),
    option(
        "--pilot/--no-pilot",
        topic=ARTISTS,
        from_file=True,
        default=False,
        help="Only the first artist of each split and style.",
    ),
)
condition_filters = options(
    option(
        "--protection",
        "protections",
        topic=CONDITIONS,
        multiple=True,
        help="Only of this one; may be repeated.",
    ),
    option(
        "--countermeasure",
        "countermeasures",
        topic=CONDITIONS,
        multiple=True,
        help="Only of this one; may be repeated.",
    ),
)
hub_options = options(
    option(
        "--hub-namespace",
        topic=HUB,
        from_file=True,
        help="User or organisation; by default that of HF_TOKEN.",
    ),
    option(
        "--base-model-id",
        topic=HUB,
        from_file=True,
        help="Hub name to publish for a base model in a local folder.",
    ),
)
# What apply_tuning hands on to the wrapper as it is.
handed_on_options = options(
    option(
        "--push-to-hub/--no-push-to-hub",
        topic=HUB,
        from_file=True,
        default=True,
        help="Upload each adapter, privately.",
    ),
    hub_options,
    option(
        "--train-script",
        topic=CALL,
        type=click.Path(path_type=Path),
        help="Train with this copy of diffusers' train_dreambooth_lora_sd3.py instead of our own.",
    ),
    option(
        "--stall-minutes",
        topic=CALL,
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        help="An artist fails when no step was taken for so long.",
    ),
)


def hyper_parameter(declared: Option, **changes: Any) -> Decorator:
    """Return a decorator that gives a command the option of a hyper-parameter; booleans become --x/--no-x."""
    facts: dict[str, Any] = {
        "topic": declared.topic,
        "default": declared.default,
        "help": declared.facts.help,
    }
    if declared.type is bool:
        negative = declared.flag.replace("--", "--no-", 1)
        return option(f"{declared.flag}/{negative}", declared.name, **facts | changes)
    facts |= {
        "type": declared.convert,
        "show_default": declared.default is not None,
        "metavar": declared.metavar,
    }
    return option(declared.flag, declared.name, **facts | changes)


hyper_parameter_options = options(*(hyper_parameter(declared, from_file=True) for declared in OPTIONS))


def selection_of(parameters: Mapping[str, Any]) -> Selection:
    """Return the filters that a command with `selection_options` was given."""
    return Selection(
        splits=parameters["splits"],
        styles=parameters["styles"],
        artists=parameters["artists"],
        pilot=parameters["pilot"],
    )


def take_config(parameters: dict[str, Any]) -> TuningConfig:
    """Remove the hyper-parameters from a command's `parameters` and return them, checked.

    Raises:
        UsageError: values out of bounds, all of them; or one that the --train-script cannot take.
    """
    config = TuningConfig(**{declared.name: parameters.pop(declared.name) for declared in OPTIONS})
    script = parameters.get("train_script")
    if config.captions and script is not None:
        raise UsageError(
            f"--captions: {script.name} takes one prompt for all images of a folder; leave --captions or "
            f"--train-script out"
        )
    return config


def option_words(config: TuningConfig) -> list[str]:
    """Return `config` as options of the wrapper, every one explicit.

    A value is joined to its option, so that one with a leading dash is not taken for an option.
    """
    words = []
    for declared in OPTIONS:
        value = getattr(config, declared.name)
        if declared.type is bool:
            words.append(declared.flag if value else declared.flag.replace("--", "--no-", 1))
        elif value is not None:
            words.append(f"{declared.flag}={value}")
    return words
