"""The options of `TuningConfig` as command lines: click options, trainer flags, argument lists, a table."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mimicry.common.errors import UsageError
from mimicry.study.selection import Selection
from mimicry.study.tree import DEFAULT_DATA_ROOT
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.declarations import Option
from mimicry.tuning.stacks import DEFAULT_STACK

Command = TypeVar("Command", bound=Callable[..., Any])
TRAINER_OPTIONS = tuple(option for option in OPTIONS if not option.facts.for_launcher)


def hyper_parameter_options(command: Command) -> Command:
    """Decorate a click command with an option for each hyper-parameter; booleans become --x/--no-x."""
    for option in reversed(OPTIONS):
        command = _click_option(option)(command)
    return command


def handed_on_options(command: Command) -> Command:
    """Decorate a click command with the options that apply_tuning hands on to the wrapper as they are."""
    for decorate in reversed(_HANDED_ON):
        command = decorate(command)
    return command


def options_named(*names: str) -> Callable[[Command], Command]:
    """Return a decorator that gives a click command the options of some hyper-parameters."""

    def decorate(command: Command) -> Command:
        for option in reversed(OPTIONS):
            if option.name in names:
                command = _click_option(option)(command)
        return command

    return decorate


def tree_options(command: Command) -> Command:
    """Decorate a click command with the options that say which study it is about, and which stack."""
    for decorate in reversed(_TREE):
        command = decorate(command)
    return command


def selection_options(command: Command) -> Command:
    """Decorate a click command with the filters of artists; see `mimicry.study.selection`."""
    for decorate in reversed(_SELECTION):
        command = decorate(command)
    return command


_TREE = (
    click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        default=DEFAULT_DATA_ROOT,
        help="Root of the study's tree.",
    ),
    click.option(
        "--stack", default=DEFAULT_STACK, help="Way of training: a folder with a runner_config.json."
    ),
)
_SELECTION = (
    click.option("--split", "splits", multiple=True, help="Only artists of this split; may be repeated."),
    click.option("--style", "styles", multiple=True, help="Only artists of this style; may be repeated."),
    click.option("--artist", "artists", multiple=True, help="Only this artist; may be repeated."),
    click.option("--pilot", is_flag=True, help="Only the first artist of each split and style."),
)
_HANDED_ON = (
    click.option("--push-to-hub/--no-push-to-hub", default=True, help="Upload each adapter, privately."),
    click.option("--hub-namespace", help="User or organisation on the Hub; by default that of HF_TOKEN."),
    click.option("--base-model-id", help="Hub name to publish in place of a base model in a local folder."),
    click.option(
        "--train-script",
        type=click.Path(path_type=Path),
        help="Train with this copy of diffusers' train_dreambooth_lora_sd3.py instead of our own.",
    ),
    click.option(
        "--stall-minutes",
        type=click.FloatRange(min=0, min_open=True),
        default=30.0,
        help="An artist fails when no step was taken for so long.",
    ),
)


def selection_of(parameters: Mapping[str, Any]) -> Selection:
    """Return the filters that a command with `selection_options` was given."""
    return Selection(
        splits=parameters["splits"],
        styles=parameters["styles"],
        artists=parameters["artists"],
        pilot=parameters["pilot"],
    )


def _click_option(option: Option) -> Callable[[Command], Command]:
    text = option.facts.help
    if option.type is bool:
        negative = option.flag.replace("--", "--no-", 1)
        return click.option(
            f"{option.flag}/{negative}", option.name, default=option.default, show_default=True, help=text
        )
    return click.option(
        option.flag,
        option.name,
        type=_lenient(option.type),
        default=option.default,
        show_default=option.default is not None,
        metavar=_metavar(option),
        help=text,
    )


def _metavar(option: Option) -> str:
    if option.facts.choices:
        return "[" + "|".join(option.facts.choices) + "]"
    return {int: "INTEGER", float: "NUMBER", str: "TEXT"}[option.type]


def _lenient(kind: type) -> Callable[[Any], Any]:
    """Return a converter to `kind` that leaves alone what is none.

    TuningConfig refuses it then, with all other problems at once, where a parser stops at the first.
    """

    def convert(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            return value

    return convert


def _truth(word: str) -> Any:
    """Return what `word` says; one that says neither is left for TuningConfig to refuse."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}.get(
        word.casefold(), word
    )


def take_config(parameters: dict[str, Any]) -> TuningConfig:
    """Remove the hyper-parameters from a command's `parameters` and return them, checked.

    Raises:
        UsageError: values out of bounds, all of them; or one that the --train-script cannot take.
    """
    config = TuningConfig(**{option.name: parameters.pop(option.name) for option in OPTIONS})
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
    for option in OPTIONS:
        value = getattr(config, option.name)
        if option.type is bool:
            words.append(option.flag if value else option.flag.replace("--", "--no-", 1))
        elif value is not None:
            words.append(f"{option.flag}={value}")
    return words


def trainer_flags(config: TuningConfig) -> dict[str, list[str]]:
    """Return the words for each flag of the trainer, by option name; a boolean that is off has none.

    What the launcher is told is no flag of the trainer.

    A boolean that takes a word is "True", or empty for false: a script that declares it with type=bool, as
    the diffusers example does, takes every other word for true.
    """
    flags = {}
    for option in TRAINER_OPTIONS:
        value = getattr(config, option.name)
        if option.facts.takes_word:
            flags[option.name] = [f"{option.trainer_flag}={value or ''}"]
        elif option.type is bool:
            flags[option.name] = [option.trainer_flag] if value else []
        else:
            flags[option.name] = [] if value is None else [f"{option.trainer_flag}={value}"]
    return flags


def add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all hyper-parameters to the trainer's `parser`.

    A boolean is off unless given; one that takes a word has its default, and is on when given without.
    """
    group = parser.add_argument_group("hyper-parameters")
    for option in TRAINER_OPTIONS:
        facts = option.facts
        text = facts.help.replace("%", "%%")
        if facts.takes_word:
            group.add_argument(
                option.trainer_flag,
                type=_truth,
                nargs="?",
                const=True,
                default=option.default,
                metavar="{true|false}",
                help=f"{text} [default: {option.default}]",
            )
        elif option.type is bool:
            group.add_argument(option.trainer_flag, action="store_true", help=text)
        else:
            group.add_argument(
                option.trainer_flag,
                type=_lenient(option.type),
                default=option.default,
                # argparse cannot fold a usage that has brackets in it.
                metavar=_metavar(option).replace("[", "{").replace("]", "}"),
                help=text if option.default is None else f"{text} [default: {option.default}]",
            )


def config_from_flags(values: Mapping[str, Any], **told: Any) -> TuningConfig:
    """Return the configuration for the parsed trainer flags in `values`, and what the launcher was `told`."""
    return TuningConfig(**{option.name: values[option.name] for option in TRAINER_OPTIONS}, **told)


def readme_table() -> str:
    """Return the README's table of the main hyper-parameters, as Markdown."""
    rows = ["| Parameter | Default | Rationale |", "|---|---|---|"]
    for option in OPTIONS:
        if option.facts.rationale:
            rows.append(f"| `{option.flag}` | {_shown_default(option)} | {option.facts.rationale} |")
    return "\n".join(rows)


def _shown_default(option: Option) -> str:
    if option.type is bool:
        return "enabled" if option.default else "disabled"
    if option.name == "learning_rate":
        return f"{option.default:.0e}".replace("e-0", "e-")
    return f'`"{option.default}"`' if " " in str(option.default) else str(option.default)
