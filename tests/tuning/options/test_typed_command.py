"""The command line as it was typed, and with other options."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from mimicry.common.processes import run_command
from mimicry.tuning.options.click_options import hyper_parameter_options, selection_options, tree_options
from mimicry.tuning.options.typed_command import TypedCommand, hyper_parameter_words


@pytest.fixture
def typed(request: pytest.FixtureRequest) -> TypedCommand:
    """What a small program makes of the words that the test gives."""
    found: list[TypedCommand] = []

    @click.command("tune")
    @tree_options
    @selection_options
    @hyper_parameter_options
    @click.pass_context
    def tune(context: click.Context, /, **_: Any) -> None:
        found.append(TypedCommand.of(context))

    assert run_command(tune, request.param) == 0
    return found[0]


@pytest.mark.parametrize(
    "typed",
    [["--artist=a", "--artist", "O'Keeffe x", "--rank=8", "--no-cache-latents", "--pilot", "--seed", "1"]],
    indirect=True,
)
def test_what_was_typed_and_nothing_else(typed: TypedCommand) -> None:
    typed = replace(typed, program=("tune",))
    assert shlex.split(typed.line())[1:] == [
        *("--artist", "a", "--artist", "O'Keeffe x", "--pilot"),
        *("--rank", "8", "--no-cache-latents", "--seed", "1"),
    ]
    changed = shlex.split(typed.line(without={"rank", "cache_latents"}, more=["--rank", "4"]))
    assert changed[1:] == [
        *("--artist", "a", "--artist", "O'Keeffe x", "--pilot", "--seed", "1", "--rank", "4")
    ]


@pytest.mark.parametrize("typed", [["--variant=none", "--no-pilot"]], indirect=True)
def test_words_that_mean_what_is_usual_stay_as_they_were_typed(typed: TypedCommand) -> None:
    assert shlex.split(replace(typed, program=("tune",)).line()) == [
        *("tune", "--variant", "none", "--no-pilot"),
    ]


@pytest.mark.parametrize(
    ("started", "program"),
    [("/a b/apply_tuning.py", ["python", "/a b/apply_tuning.py"]), ("/bin/apply_tuning", ["apply_tuning"])],
)
def test_how_the_program_was_started(
    started: str, program: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    with click.Context(click.Command("tune"), info_name=Path(started).name) as context:
        assert shlex.split(TypedCommand.of(context).line()) == program


def test_hyper_parameters_as_a_person_types_them() -> None:
    values = {"rank": 4, "learning_rate": 1e-5, "random_flip": True, "center_crop": False}
    others = {"lora_blocks": None, "an_option_of_another_version": 7, "variant": "fp16"}
    assert hyper_parameter_words(values | others) == [
        *("--rank", "4", "--learning-rate", "1e-05", "--random-flip", "--no-center-crop"),
        *("--model-variant", "fp16"),
    ]
