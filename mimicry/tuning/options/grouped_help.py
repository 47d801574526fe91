"""Commands whose --help is grouped by topic, and options that know theirs."""

from collections.abc import Callable
from typing import Any

import click

import mimicry

_OTHERS = "Other options"
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class TopicOption(click.Option):
    """An option with the topic that --help shows it under."""

    def __init__(self, *declarations: Any, topic: str = _OTHERS, **facts: Any) -> None:
        super().__init__(*declarations, **facts)
        self.topic = topic


class TopicCommand(click.Command):
    """A command whose --help groups options by their topic, in the order in which topics first come."""

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
