"""The options of the programs, as click options: hyper-parameters, and what several programs share.

The --help of a program is grouped by topic, and options may have their default in study.toml.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import mimicry
from mimicry.common.errors import UsageError
from mimicry.common.text import shell_line
from mimicry.study import ALL, DEFAULT_DATA_ROOT, NONE, Selection, variant_problem
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.declarations import Option
from mimicry.tuning.options.study_defaults import (
    DATA_ROOT,
    STUDY_PATH,
    STUDY_VARIANT,
    refuse_contradictions,
    study_file_of,
    take_study_file,
)

_OTHERS = "Other options"
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class TopicOption(click.Option):
    """An option with the topic that --help shows it under.

    With `from_file` its default is what study.toml says under the name of its parameter.
    """

    def __init__(
        self, *declarations: Any, topic: str = _OTHERS, from_file: bool = False, **facts: Any
    ) -> None:
        super().__init__(*declarations, **facts)
        self.topic = topic
        self.from_file = from_file


class TopicCommand(click.Command):
    """A command whose --help groups options by their topic, in the order in which topics first come.

    With --study, options take their defaults from the study's file.
    """

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        take_study_file(context, self.get_params(context), args)
        rest = super().parse_args(context, args)
        refuse_contradictions(context)
        return rest

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        topics: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                topics.setdefault(getattr(parameter, "topic", _OTHERS), []).append(record)
        others = topics.pop(_OTHERS, [])
        for topic, records in [*topics.items(), (_OTHERS, others)]:
            if records:
                with formatter.section(topic):
                    formatter.write_dl(records)


def program(name: str | None = None) -> Callable[[Callable[..., Any]], TopicCommand]:
    """Return a decorator that makes a function a program: grouped --help, -h, --version, defaults shown."""

    def decorate(function: Callable[..., Any]) -> TopicCommand:
        settings = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
        version = click.version_option(mimicry.__version__, message="mimicry %(version)s")
        command = click.command(name, cls=TopicCommand, context_settings=settings)
        return command(version(function))

    return decorate


def option(*declarations: str, topic: str, **facts: Any) -> Decorator:
    """Return a decorator that gives a command an option of a topic."""
    return click.option(*declarations, cls=TopicOption, topic=topic, **facts)


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


def _filter(flag: str, parameter: str, topic: str, help: str, **facts: Any) -> Decorator:
    return option(flag, parameter, topic=topic, multiple=True, help=f"{help}; may be repeated.", **facts)


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
    _filter("--split", "splits", ARTISTS, "Only of this split", from_file=True),
    _filter("--style", "styles", ARTISTS, "Only of this style", from_file=True),
    _filter("--artist", "artists", ARTISTS, "Only this artist", from_file=True),
    option(
        "--pilot/--no-pilot",
        topic=ARTISTS,
        from_file=True,
        default=False,
        help="Only the first artist of each split and style.",
    ),
)
condition_filters = options(
    _filter("--protection", "protections", CONDITIONS, "Only of this one"),
    _filter("--countermeasure", "countermeasures", CONDITIONS, "Only of this one"),
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
        return option(f"{declared.flag}/{declared.negative}", declared.name, **facts | changes)
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
            words.append(declared.flag if value else declared.negative)
        elif value is not None:
            words.append(f"{declared.flag}={value}")
    return words


@dataclass(frozen=True)
class TypedCommand:
    """A program and the options that were typed, as words by the name of the parameter.

    `study_file` is the file that other options were taken from.
    """

    program: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    study_file: Path | None = None

    @classmethod
    def from_context(cls, context: click.Context) -> "TypedCommand":
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
    known = {declared.name: declared for declared in OPTIONS}
    words: list[str] = []
    for name, value in values.items():
        if value is None or name not in known:
            continue
        if isinstance(value, bool):
            words.append(known[name].flag if value else known[name].negative)
        else:
            words += [known[name].flag, str(value)]
    return words


def _words(parameter: click.Parameter, value: Any) -> tuple[str, ...]:
    flag = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return (flag if value else max(parameter.secondary_opts, key=len),)
    values = value if isinstance(value, tuple) else (value,)
    return tuple(word for one in values for word in (flag, str(one)))
