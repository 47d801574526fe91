"""The program `mimicry`: one command, whose subcommands are imported when they are called."""

import importlib
import sys
from dataclasses import dataclass

import click

import mimicry
from mimicry.common.processes import run_command


@dataclass(frozen=True)
class _Subcommand:
    """Where a subcommand is, and what it is for."""

    module: str
    function: str
    summary: str


_SUBCOMMANDS = {
    "init": _Subcommand("mimicry.commands.init", "init", "Write a study.toml from what is in the tree."),
    "tune": _Subcommand(
        "mimicry.tuning.apply_tuning", "apply_tuning", "Train one adapter for each artist (as apply_tuning)."
    ),
    "status": _Subcommand("mimicry.commands.status", "status", "Show how far the study is."),
    "verify": _Subcommand("mimicry.commands.verify", "verify", "Check all adapters and images in full."),
    "upload": _Subcommand(
        "mimicry.commands.upload", "upload", "Upload adapters that are not on the Hub yet."
    ),
    "samples": _Subcommand(
        "mimicry.sampling.draw_samples", "draw_samples", "Draw pictures with the adapters."
    ),
    "report": _Subcommand(
        "mimicry.report.make_report", "report", "Report on the study: a page, tables, statistics."
    ),
    "demo": _Subcommand("mimicry.demo.draw_demo", "demo", "Draw a small study to try all this on."),
}


class _Program(click.Group):
    """A group that imports a subcommand when it is called: --help must not wait for all of them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_SUBCOMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        found = _SUBCOMMANDS.get(name)
        if found is None:
            return None
        command: click.Command = getattr(importlib.import_module(found.module), found.function)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.summary) for name, found in _SUBCOMMANDS.items()])


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mimicry.__version__, message="mimicry %(version)s")
def program() -> None:
    """The training step of a style-mimicry study: one LoRA adapter for each artist and condition.

    `mimicry COMMAND --help` says more about a command.
    """


def main() -> int:
    """Run the program and return its exit code."""
    return run_command(program)


if __name__ == "__main__":
    sys.exit(main())
