"""One declaration, many command lines: each of them must carry every value unharmed."""

import argparse
import dataclasses
import re
import shlex
import string
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest

from mimicry.commands.upload import upload
from mimicry.commands.verify import verify
from mimicry.common.errors import UsageError
from mimicry.common.processes import run_command
from mimicry.study.captions import CAPTION_FIELD
from mimicry.tuning.apply_tuning import apply_tuning
from mimicry.tuning.options.click_options import (
    TypedCommand,
    hyper_parameter_options,
    hyper_parameter_words,
    option_words,
    selection_options,
    take_config,
    tree_options,
)
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.declarations import Option
from mimicry.tuning.options.flags import TRAINER_OPTIONS, add_trainer_flags, config_from_flags, trainer_flags
from tests.hostile_names import HOSTILE_NAMES
from tests.option_tables import readme_table
from tests.tuning.companions import with_companions

# The table of the user's own text, in its order.
STUDY_TABLE = [
    ("--resolution", "1024"),
    ("--rank", "16"),
    ("--max-train-steps", "500"),
    ("--learning-rate", "1e-4"),
    ("--train-batch-size", "1"),
    ("--gradient-accumulation-steps", "4"),
    ("--mixed-precision", "bf16"),
    ("--gradient-checkpointing", "enabled"),
    ("--cache-latents", "enabled"),
    ("--seed", "42"),
    ("--instance-prompt", '`"a painting in the style of sks"`'),
]

# Not "--" alone, which argparse drops even where it is joined to its flag.
HOSTILE_TEXTS = [*HOSTILE_NAMES, "=", "a=b", "--rank=3", "-- x", "-h", "@file", "%s %(default)s", "\\n", "'"]


def through_click(words: list[str]) -> TuningConfig:
    """Parse `words` as the wrapper and apply_tuning do."""

    @click.command()
    @hyper_parameter_options
    def command(**parameters: Any) -> TuningConfig:
        config = take_config(parameters)
        assert parameters == {}
        return config

    result: TuningConfig = command.main(words, standalone_mode=False)
    return result


def through_argparse(words: list[str], num_processes: int = 1) -> TuningConfig:
    """Parse `words` as the trainer does; what the launcher is told does not come with them."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_trainer_flags(parser)
    return config_from_flags(vars(parser.parse_args(words)), num_processes=num_processes)


def flag_words(config: TuningConfig) -> list[str]:
    return [word for words in trainer_flags(config).values() for word in words]


def other_value(option: Option, random: Random) -> Any:
    """Return an allowed value of `option` that is not its default."""
    facts = option.facts
    if option.type is bool:
        return not option.default
    if option.type is str:
        if facts.choices:
            return random.choice([choice for choice in facts.choices if choice != option.default])
        text = random.choice(HOSTILE_TEXTS)
        return text + CAPTION_FIELD if option.name == "caption_template" else text
    low = facts.above if facts.minimum is None else facts.minimum
    high = 1e6 if facts.maximum is None else facts.maximum
    assert low is not None
    if option.type is int:
        return random.choice((int(low), int(high), random.randint(int(low), int(high))))
    return random.uniform(low, high) or high


def some_configs() -> list[TuningConfig]:
    random = Random(20)
    alone = [
        TuningConfig(**with_companions(**{option.name: other_value(option, random)})) for option in OPTIONS
    ]
    together = [
        TuningConfig(**{option.name: other_value(option, random) for option in OPTIONS}) for _ in range(20)
    ]
    return [TuningConfig(), *alone, *together]


@pytest.mark.parametrize("config", some_configs(), ids=lambda config: None)
def test_round_trips(config: TuningConfig) -> None:
    assert through_click(option_words(config)) == config
    assert through_argparse(flag_words(config), config.num_processes) == config


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=ascii)
def test_texts_round_trip(text: str) -> None:
    config = TuningConfig(
        instance_prompt=text, pretrained_model_name_or_path=text, revision=text, variant=text, cache_dir=text
    )
    assert through_click(option_words(config)) == config
    assert through_argparse(flag_words(config)) == config


def test_floats_keep_their_last_bit() -> None:
    for value in (5e-324, 0.1 + 0.2, 1 / 3, 1e-7):
        config = TuningConfig(learning_rate=value)
        assert through_click(option_words(config)).learning_rate == value
        assert through_argparse(flag_words(config)).learning_rate == value


def test_every_option_is_explicit_towards_the_wrapper() -> None:
    given = {word.split("=")[0] for word in option_words(TuningConfig())}
    left_out = {"--revision", "--model-variant", "--cache-dir", "--prompt-cache-dir"}
    left_out |= {
        "--source-resolution",
        "--prodigy-beta3",
        "--lora-layers",
        "--lora-blocks",
        "--num-train-epochs",
        "--dataloader-num-workers",
        "--checkpointed-blocks",
        "--validation-prompt",
        "--caption-template",
        "--class-data-dir",
        "--class-prompt",
        "--prior-generation-precision",
    }
    off = {option.flag for option in OPTIONS if option.default is False}
    assert {"--random-flip", "--scale-lr"} <= off
    assert left_out == {option.flag for option in OPTIONS if option.optional}
    assert given == {option.flag for option in OPTIONS} - left_out - off | {
        flag.replace("--", "--no-", 1) for flag in off
    }


def test_no_words_are_the_defaults_of_the_study() -> None:
    assert through_click([]) == TuningConfig()
    # The trainer's booleans are off unless given; its other defaults are the study's.
    off: dict[str, Any] = {
        option.name: False for option in OPTIONS if option.type is bool and not option.facts.takes_word
    }
    assert through_argparse([]) == dataclasses.replace(TuningConfig(), **off)


def test_as_the_user_types_it() -> None:
    config = through_click("--max-train-steps 1000 --rank 32 --learning-rate 5e-5".split())
    assert config == TuningConfig(max_train_steps=1000, rank=32, learning_rate=5e-5)
    config = through_click(["--no-gradient-checkpointing", "--instance-prompt", "a 'b' \"c\""])
    assert config == TuningConfig(gradient_checkpointing=False, instance_prompt="a 'b' \"c\"")


@pytest.mark.parametrize("parse", [through_click, through_argparse])
def test_all_bounds_are_checked_after_parsing(parse: Any) -> None:
    words = ["--rank=0", "--resolution=5", "--seed=-3"]
    with pytest.raises(UsageError) as caught:
        parse([*words, "--learning" + ("-" if parse is through_click else "_") + "rate=nan"])
    assert len(caught.value.problems) == 4


def test_help_names_every_option_and_default() -> None:
    @click.command()
    @hyper_parameter_options
    def command() -> None:
        """Nothing."""

    text = " ".join(command.get_help(click.Context(command)).split())
    parser = argparse.ArgumentParser()
    add_trainer_flags(parser)
    trainer_text = " ".join(parser.format_help().split())
    for option in OPTIONS:
        assert f"{option.flag} " in text or f"{option.flag} / " in text
        assert (f"{option.trainer_flag} " in trainer_text) == (option in TRAINER_OPTIONS)
        assert option.facts.help.split(".")[0][:20] in text
    assert "[default: a painting in the style of sks]" in text
    assert "[default: a painting in the style of sks]" in trainer_text


def test_the_launcher_is_told_what_is_no_flag_of_the_trainer() -> None:
    assert [option.name for option in OPTIONS if option not in TRAINER_OPTIONS] == ["num_processes"]
    assert not [word for word in flag_words(TuningConfig(num_processes=2)) if "num_processes" in word]
    assert "--num-processes=2" in option_words(TuningConfig(num_processes=2))


WORDED = [option.name for option in OPTIONS if option.facts.takes_word]


class TestBooleansWithAWord:
    """What the diffusers example declares with type=bool, which makes True of the word False."""

    def test_they_are_those_of_the_example(self) -> None:
        assert WORDED == ["prodigy_decouple", "prodigy_use_bias_correction", "prodigy_safeguard_warmup"]
        assert all(getattr(TuningConfig(), name) is True for name in WORDED)

    @pytest.mark.parametrize("name", WORDED)
    @pytest.mark.parametrize(
        ("words", "meant"),
        [
            ([], True),
            (["--{}"], True),
            (["--{}", "False"], False),
            (["--{}=False"], False),
            (["--{}=false"], False),
            (["--{}=0"], False),
            (["--{}=no"], False),
            (["--{}="], False),
            (["--{}", "TRUE"], True),
            (["--{}=1"], True),
            (["--{}=yes"], True),
            (["--{}", "--scale_lr"], True),
        ],
    )
    def test_the_trainer_takes_them_by_their_word(self, name: str, words: list[str], meant: bool) -> None:
        config = through_argparse([word.format(name) for word in words])
        assert getattr(config, name) is meant
        assert all(getattr(config, other) is True for other in WORDED if other != name)

    @pytest.mark.parametrize("name", WORDED)
    def test_another_word_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="is 'maybe'; it takes true or false"):
            through_argparse([f"--{name}=maybe"])

    @pytest.mark.parametrize("name", WORDED)
    def test_users_have_a_pair_of_options(self, name: str) -> None:
        assert getattr(through_click([f"--no-{name.replace('_', '-')}"]), name) is False

    @pytest.mark.parametrize("value", [True, False])
    def test_a_script_that_declares_them_as_bool_understands_us(self, value: bool) -> None:
        same: dict[str, Any] = dict.fromkeys(WORDED, value)
        config = TuningConfig(**same)
        theirs = argparse.ArgumentParser()
        for name in WORDED:
            theirs.add_argument(f"--{name}", type=lambda word: bool(word), default=True)
        words = [word for name in WORDED for word in trainer_flags(config)[name]]
        assert vars(theirs.parse_args(words)) == same


def table_rows(markdown: str) -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| `([^`]*)` \| (.*?) \| (.*?) \|$", markdown, flags=re.MULTILINE)
    return [(name, default, rationale) for name, default, rationale in rows]


def test_readme_table_is_the_users() -> None:
    lines = readme_table().splitlines()
    assert lines[:2] == ["| Parameter | Default | Rationale |", "|---|---|---|"]
    rows = table_rows(readme_table())
    assert len(rows) == len(lines) - 2
    assert [(name, default) for name, default, _ in rows] == STUDY_TABLE
    assert all(rationale and rationale[0] in string.ascii_uppercase + "~" for _, _, rationale in rows)


def test_readme_has_the_table() -> None:
    readme = Path(__file__).parents[3] / "README.md"
    assert readme_table() in readme.read_text("utf-8")


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
        found.append(TypedCommand.from_context(context))

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
        assert shlex.split(TypedCommand.from_context(context).line()) == program


def test_hyper_parameters_as_a_person_types_them() -> None:
    values = {"rank": 4, "learning_rate": 1e-5, "random_flip": True, "center_crop": False}
    others = {"lora_blocks": None, "an_option_of_another_version": 7, "variant": "fp16"}
    assert hyper_parameter_words(values | others) == [
        *("--rank", "4", "--learning-rate", "1e-05", "--random-flip", "--no-center-crop"),
        *("--model-variant", "fp16"),
    ]
