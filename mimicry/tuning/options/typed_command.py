"""The command line as it was typed, for messages that say what to type instead."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mimicry.common.text import shell_line
from mimicry.tuning.options.config import OPTIONS
from mimicry.tuning.options.study_defaults import study_file_of


@dataclass(frozen=True)
class TypedCommand:
    """A program and the options that were typed, as words by the name of the parameter.

    `study_file` is the file that other options were taken from.
    """

    program: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    study_file: Path | None = None

    @classmethod
    def of(cls, context: click.Context) -> "TypedCommand":
        """Return the command line of the command that runs in `context`."""
        typed = {
            parameter.name: _words(parameter, context.params[parameter.name])
            for parameter in context.command.params
            if parameter.name is not None
            and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        }
        path = context.command_path
        program = ("python", sys.argv[0]) if path.endswith(".py") else tuple(path.split())
        return cls(program, typed, study_file_of(context).path)

    def line(self, *, without: Collection[str] = (), more: Sequence[str] = ()) -> str:
        """Return the command for a shell, without the options of some parameters and with `more` words."""
        kept = [word for name, words in self.options.items() if name not in without for word in words]
        return shell_line([*self.program, *kept, *more])


def hyper_parameter_words(values: Mapping[str, Any]) -> list[str]:
    """Return hyper-parameters as a person types them; None, or one of another version, is left out."""
    flags = {option.name: option.flag for option in OPTIONS}
    words: list[str] = []
    for name, value in values.items():
        if value is None or name not in flags:
            continue
        if isinstance(value, bool):
            words.append(flags[name] if value else flags[name].replace("--", "--no-", 1))
        else:
            words += [flags[name], str(value)]
    return words


def _words(parameter: click.Parameter, value: Any) -> tuple[str, ...]:
    flag = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return (flag if value else max(parameter.secondary_opts, key=len),)
    values = value if isinstance(value, tuple) else (value,)
    return tuple(word for one in values for word in (flag, str(one)))
