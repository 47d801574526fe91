"""Commands whose --help is grouped by topic, and whose options may have their default in study.toml."""

from collections.abc import Callable
from typing import Any

import click

import mimicry
from mimicry.tuning.options.study_defaults import refuse_contradictions, take_study_file

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
