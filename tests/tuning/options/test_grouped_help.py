"""--help by topic: every option once, under its topic."""

import re

import click
import pytest

from mimicry.commands.upload import upload
from mimicry.commands.verify import verify
from mimicry.common.processes import run_command
from mimicry.tuning.apply_tuning import apply_tuning


def help_of(command: click.Command, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command(command, ["--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [apply_tuning, verify, upload], ids=lambda command: str(command.name))
def test_every_option_is_listed_once(command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, shown = help_of(command, capsys).partition("\nStudy:\n")
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)

    context = click.Context(command)
    options = [max(option.opts, key=len) for option in command.get_params(context)]
    assert sorted(listed) == sorted(options)


def test_options_stand_under_their_topics(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(apply_tuning, capsys)

    topics = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert topics[:6] == ["Study", "Conditions", "Artists", "This call", "Slurm", "Hugging Face Hub"]
    assert topics[-1] == "Other options"
    assert len(topics) == len(set(topics))
    parts = dict(zip(topics, re.split(r"^\w.*:$", shown, flags=re.MULTILINE)[1:], strict=True))
    assert "--data-root" in parts["Study"]
    assert "--countermeasure" in parts["Conditions"]
    assert "--pilot" in parts["Artists"]
    assert "--overwrite" in parts["This call"]
    assert "--hub-namespace" in parts["Hugging Face Hub"]
    assert "--help" in parts["Other options"]
