"""What commands take from study.toml, and what they refuse to have typed beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from mimicry.common.processes import run_command
from mimicry.tuning.options.click_options import (
    CALL,
    hyper_parameter_options,
    option,
    program,
    selection_options,
    take_config,
    tree_options,
)
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.study_defaults import series_of_call, study_file_of
from mimicry.tuning.options.study_file import Series, StudyFile

FILE = (
    '[study]\npilot = true\nstyles = ["baroque"]\nstack = "./quick"\nhub_namespace = "lab"\nreplicates = 2\n'
    '[recipe]\nrank = 8\noptimizer = "AdamW"\ncompile_blocks = true\n'
    'pretrained_model_name_or_path = "./tiny"\n'
    "[variants.rank-32]\nrank = 32\nreplicates = 2\n"
    '[samples]\nprompts = ["a boat", "a tree"]\nsteps = 3\n'
)


class Called:
    """What a command was called with."""

    parameters: dict[str, Any]
    study_file: StudyFile
    series: tuple[Series, ...]


Call = Callable[..., Called]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a study in it that has a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study" / "tiny").mkdir(parents=True)
    (tmp_path / "study" / "study.toml").write_text(FILE)
    return tmp_path


@pytest.fixture
def tune(root: Path) -> Call:
    """A small program with options of apply_tuning, on the study."""

    def run(*words: str) -> Called:
        called = Called()

        @program("tune")
        @tree_options
        @selection_options
        @option("--prompt", "prompts", topic=CALL, multiple=True, from_file=True)
        @option("--steps", topic=CALL, type=int, default=28)
        @hyper_parameter_options
        @click.pass_context
        def command(context: click.Context, /, **parameters: Any) -> None:
            called.parameters = dict(parameters)
            called.study_file = study_file_of(context)
            called.series = series_of_call(context, take_config(parameters))

        assert run_command(command, ["--data-root=study", *words]) == 0
        return called

    return run


@pytest.fixture
def refused(tune: Call, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Returns the lines of what is refused."""

    def run(*words: str) -> list[str]:
        capsys.readouterr()
        with pytest.raises(AssertionError, match="assert 2 == 0"):
            tune(*words)
        return capsys.readouterr().err.splitlines()

    return run


def test_values_of_the_file_are_defaults(tune: Call) -> None:
    called = tune()

    assert called.study_file.path == Path("study/study.toml")
    found = called.parameters
    assert (found["pilot"], found["styles"], found["stack"]) == (True, ("baroque",), "study/quick")
    assert found["prompts"] == ("a boat", "a tree")
    assert found["steps"] == 28  # the option does not take its default from the file
    assert (found["rank"], found["compile_blocks"]) == (8, True)
    assert found["pretrained_model_name_or_path"] == "study/tiny"


def test_what_is_typed_overrides_what_is_not_in_the_recipe(tune: Call) -> None:
    found = tune("--no-pilot", "--style=cubism", "--stack=other", "--no-compile-blocks").parameters

    assert (found["pilot"], found["styles"], found["stack"]) == (False, ("cubism",), "other")
    assert found["compile_blocks"] is False


@pytest.mark.parametrize("words", [("--study=none",), ("--study", "none")])
def test_none_leaves_the_file_out(words: tuple[str, ...], tune: Call) -> None:
    called = tune(*words, "--rank=4")

    assert called.study_file == StudyFile()
    assert called.series == (Series(None, TuningConfig(rank=4)),)


def test_another_file(tune: Call, root: Path) -> None:
    (root / "none").write_text("[recipe]\nrank = 3\n")

    assert tune("--study=./none").parameters["rank"] == 3


def test_without_a_file_nothing_changes(tune: Call, root: Path) -> None:
    (root / "study" / "study.toml").unlink()
    called = tune()

    assert called.study_file == StudyFile()
    assert called.series == (Series(None, TuningConfig()),)


def test_a_file_that_is_named_must_be_there(refused: Callable[..., list[str]]) -> None:
    (line,) = refused("--study=absent.toml")
    assert line.startswith("error: absent.toml cannot be read: No such file")


def test_a_file_that_is_a_broken_link_is_not_passed_over(
    refused: Callable[..., list[str]], root: Path
) -> None:
    path = root / "study" / "study.toml"
    path.unlink()
    path.symlink_to("away.toml")

    (line,) = refused()
    assert line.startswith("error: study/study.toml cannot be read")


def test_all_that_is_wrong_with_the_file_is_said(refused: Callable[..., list[str]], root: Path) -> None:
    (root / "study" / "study.toml").write_text("[recipe]\nranc = 3\nrank = 0\n")

    assert refused() == [
        "error: study/study.toml: [recipe] ranc: there is no such key; did you mean 'rank'?",
        "error: study/study.toml: [recipe] rank is 0; it takes at least 1, at most 1024",
    ]


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_is_given_whatever_the_file_says(
    word: str, tune: Call, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "study" / "study.toml").write_text("nonsense")

    with pytest.raises(AttributeError):  # the command itself does not run
        _ = tune(word).parameters
    assert capsys.readouterr().err == ""


class TestContradictions:
    def test_all_are_refused_with_both_values_and_the_ways_on(
        self, refused: Callable[..., list[str]], root: Path
    ) -> None:
        (root / "elsewhere").mkdir()
        lines = refused("--rank=16", "--optimizer=prodigy", "--pretrained-model-name-or-path=elsewhere")

        assert len(lines) == 3
        assert lines[0].startswith("error: --rank is 16, but study/study.toml has 8 in [recipe]; ")
        for line in lines:
            for way in ("Change the file", "[variants.NAME]", "--variant NAME", "--study none"):
                assert way in line

    def test_equal_values_pass(self, tune: Call) -> None:
        called = tune("--rank=8", "--optimizer=adamw", "--pretrained-model-name-or-path=study/../study/tiny")

        assert called.series[0].config.rank == 8

    def test_what_the_file_does_not_have_may_be_typed(self, tune: Call) -> None:
        called = tune("--learning-rate=1e-3", "--seed=5")

        assert [(one.name, one.config.seed) for one in called.series] == [
            *(("none", 5), ("seed-6", 6)),
            *(("rank-32", 5), ("rank-32-seed-6", 6)),
        ]
        assert {one.config.learning_rate for one in called.series} == {1e-3}

    def test_a_value_out_of_bounds_is_refused_as_such(self, refused: Callable[..., list[str]]) -> None:
        assert refused("--rank=0", "--seed=-1") == [
            "error: --rank is 0; it takes at least 1, at most 1024",
            "error: --seed is -1; it takes at least 0, at most 9223372036854775807",
        ]

    def test_with_a_variant_its_values_count(self, tune: Call, refused: Callable[..., list[str]]) -> None:
        called = tune("--variant=rank-32", "--rank=32")

        assert [(one.name, one.config.rank) for one in called.series] == [
            ("rank-32", 32),
            ("rank-32-seed-43", 32),
        ]
        (line,) = refused("--variant=rank-32", "--rank=8")
        assert "study/study.toml has 32 in [variants.rank-32]" in line
        (line,) = refused("--variant=rank-32-seed-43", "--rank=8", "--seed=43")
        assert "has 32" in line

    def test_a_replicate_has_the_seed_of_its_name(
        self, tune: Call, refused: Callable[..., list[str]]
    ) -> None:
        assert tune("--variant=seed-43").series == (
            Series(
                "seed-43",
                TuningConfig(
                    rank=8, seed=43, compile_blocks=True, pretrained_model_name_or_path="study/tiny"
                ),
            ),
        )
        (line,) = refused("--variant=seed-43", "--seed=44")
        assert "--seed is 44, but study/study.toml has 43 for its replicate seed-43" in line

    def test_a_variant_that_the_file_does_not_have_is_a_study_beside(self, tune: Call) -> None:
        (series,) = tune("--variant=tiny", "--rank=4", "--optimizer=prodigy").series

        assert (series.name, series.config.rank, series.config.optimizer) == ("tiny", 4, "prodigy")

    def test_one_that_the_file_does_not_have_and_nothing_differs(
        self, refused: Callable[..., list[str]]
    ) -> None:
        (line,) = refused("--variant=rank-23")
        assert "--variant rank-23: there is no such variant; did you mean 'rank-32'" in line


def test_the_plain_series_by_its_name(tune: Call) -> None:
    assert [one.variant for one in tune("--variant=none").series] == [None]
