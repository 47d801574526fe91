"""mimicry init: the file that it writes is a study's, and says what the tree has."""

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mimicry.cli import program
from mimicry.common.processes import run_command
from mimicry.study.tree import StudyTree
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.study_file import StudyFile
from tests.small_study import ANNA, listing, share_samples, write_images, write_study


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyTree:
    monkeypatch.chdir(tmp_path)
    return write_study(Path("study"))


def init(*words: str) -> int:
    return run_command(program, ["init", "--data-root=study", *words])


def without_comment_signs(text: str) -> dict[str, Any]:
    """Read the file as if all commented keys were set."""
    lines = [line.removeprefix("# ") if " = " in line or "[" in line else line for line in text.splitlines()]
    return tomllib.loads("\n".join(lines))


def test_it_says_what_the_tree_has(tree: StudyTree, capsys: pytest.CaptureFixture[str]) -> None:
    assert init() == 0

    said = StudyFile.read(tree.study_file)
    assert said.study == {
        "protections": ("none", "mist"),
        "countermeasures": ("none", "noisy_upscaling"),
    }
    assert (said.recipe, said.variants) == ({}, {})
    assert said.samples["prompts"][0] == TuningConfig().instance_prompt
    text = tree.study_file.read_text()
    assert '"mist",  # 4 artists\n' in text
    assert '"noisy_upscaling",  # 4 artists of mist\n' in text
    assert capsys.readouterr().out.splitlines() == [
        "found    4 artists of original art, in 3 splits and styles",
        "found    protection mist: 4 artists",
        "found    countermeasure noisy_upscaling: 4 artists of mist",
        "written  study/study.toml",
        "next     apply_tuning --data-root study --dry-run",
    ]


def test_the_comments_are_the_defaults_and_can_be_used(tree: StudyTree) -> None:
    init()
    found = without_comment_signs(tree.study_file.read_text())

    assert {option.name for option in OPTIONS if option.facts.rationale} < found["recipe"].keys()
    assert TuningConfig(**found["recipe"]) == TuningConfig()
    assert found["study"]["replicates"] == 3
    assert found["variants"] == {"rank-32": {"rank": 32}}


def test_a_dry_run_prints_it_and_writes_nothing(tree: StudyTree, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(tree.data_root)

    assert init("--dry-run") == 0

    printed = capsys.readouterr().out
    assert listing(tree.data_root) == before
    init()
    assert tree.study_file.read_text() == printed


@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_is_there_is_not_changed(
    link: bool, tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    if link:
        tree.study_file.symlink_to("nowhere.toml")
    else:
        tree.study_file.write_text("[recipe]\nrank = 3\n")
    before = listing(tree.data_root)

    assert init() == 2
    assert "error: study/study.toml is there already" in capsys.readouterr().err
    assert listing(tree.data_root) == before
    assert init("--dry-run") == 0


def test_without_original_art(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        assert run_command(program, ["init", f"--data-root={folder}"]) == 2
        assert "there is no original art" in capsys.readouterr().err
        (tmp_path / "empty" / "original_art" / "a_split").mkdir(parents=True, exist_ok=True)
    assert run_command(program, ["init", f"--data-root={tmp_path / 'empty'}"]) == 2
    assert "there is no artist in" in capsys.readouterr().err
    assert not (tmp_path / "empty" / "study.toml").exists()


def test_samples_that_do_not_say_their_protection_are_a_comment(tree: StudyTree) -> None:
    share_samples(tree)

    assert init() == 0
    assert StudyFile.read(tree.study_file).study == {
        "protections": ("none", "glaze", "mist"),
        "countermeasures": ("none",),
    }
    assert "# noisy_upscaling: " in tree.study_file.read_text()


def test_hostile_names(tree: StudyTree) -> None:
    hostile = ['say "hi" \\n', "é, € # x", "tab\tand\nline", "del\x7f", "'''"]
    comments = ["all", "a__b", os.fsdecode(b"caf\xe9")]
    for name in (*hostile, *comments, "none"):
        write_images(tree.images_of(tree.protected_art / name, ANNA))
    shutil.rmtree(tree.robust_samples)

    assert init() == 0
    said = StudyFile.read(tree.study_file)
    assert sorted(said.study["protections"]) == sorted(["none", "mist", *hostile])
    assert said.study["countermeasures"] == ("none",)


def test_a_folder_that_cannot_be_written(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mimicry.commands.init.write_bytes", refuse)

    assert init() == 2
    assert "study/study.toml cannot be written: Permission denied" in capsys.readouterr().err
