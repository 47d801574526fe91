"""The hyper-parameters as flags of the trainer, in the words of the diffusers example: made and parsed."""

import argparse
from collections.abc import Mapping
from typing import Any

from mimicry.tuning.options.config import OPTIONS, TuningConfig

# The other options go to the launcher; the trainer finds them in its environment.
TRAINER_OPTIONS = tuple(option for option in OPTIONS if not option.facts.for_launcher)


def trainer_flags(config: TuningConfig) -> dict[str, list[str]]:
    """Return the words for each flag of the trainer, by option name; a boolean that is off has none.

    Options that go to the launcher are not flags of the trainer.

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
                type=option.convert,
                default=option.default,
                # argparse cannot fold a usage that has brackets in it.
                metavar=option.metavar.replace("[", "{").replace("]", "}"),
                help=text if option.default is None else f"{text} [default: {option.default}]",
            )


def config_from_flags(values: Mapping[str, Any], **launched: Any) -> TuningConfig:
    """Return the configuration for the parsed flags in `values`, and for what the launcher was given."""
    return TuningConfig(**{option.name: values[option.name] for option in TRAINER_OPTIONS}, **launched)


def _truth(word: str) -> Any:
    """Return what `word` says; one that says neither is left for TuningConfig to refuse."""
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}.get(
        word.casefold(), word
    )
