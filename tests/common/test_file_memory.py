"""What is remembered of the files of a folder."""

import json
from pathlib import Path

import pytest

from mimicry.common.files import FileMemory

FACTS = [7, [1, None, "x"]]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "mimicry").rglob("*") if path.is_file())


def remember(folder: Path, **facts: object) -> None:
    memory = FileMemory("things", folder)
    for name, value in facts.items():
        memory.keep(name, value)
    memory.save()


def test_a_file_is_known_only_with_the_same_facts(folder: Path) -> None:
    remember(folder, a=FACTS)
    memory = FileMemory("things", folder)
    assert memory.knows("a", [7, [1, None, "x"]])
    assert not memory.knows("a", [8, [1, None, "x"]])
    assert not memory.knows("b", FACTS)


def test_a_missing_file_is_not_known(folder: Path) -> None:
    assert not FileMemory("things", folder).knows("a", None)


def test_another_kind_and_another_folder_are_other_memories(folder: Path, tmp_path: Path) -> None:
    remember(folder, a=FACTS)
    assert not FileMemory("others", folder).knows("a", FACTS)
    assert not FileMemory("things", tmp_path).knows("a", FACTS)


def test_a_link_to_the_folder_is_the_folder(folder: Path, tmp_path: Path) -> None:
    remember(folder, a=FACTS)
    (tmp_path / "link").symlink_to(folder)
    assert FileMemory("things", tmp_path / "link").knows("a", FACTS)


def test_files_that_are_not_asked_for_are_forgotten(folder: Path) -> None:
    remember(folder, a=FACTS, b=FACTS)
    memory = FileMemory("things", folder)
    assert memory.knows("a", FACTS)
    memory.save()
    assert not FileMemory("things", folder).knows("b", FACTS)


def test_nothing_is_written_when_nothing_changed(folder: Path, tmp_path: Path) -> None:
    FileMemory("things", folder).save()
    assert files(tmp_path) == []
    remember(folder, a=FACTS)
    (file,) = files(tmp_path)
    before = file.stat()
    remember(folder, a=FACTS)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("content", ["", "[1", "[]", '{"version": 2}', '{"version": 1, "good": 7}', "\xff"])
def test_a_broken_memory_is_empty(folder: Path, tmp_path: Path, content: str) -> None:
    remember(folder, a=FACTS)
    (file,) = files(tmp_path)
    whole = json.loads(file.read_text())
    file.write_text(content, "latin-1")
    assert not FileMemory("things", folder).knows("a", FACTS)
    remember(folder, a=FACTS)
    assert json.loads(file.read_text()) == whole


def test_a_memory_that_cannot_be_written_is_ignored(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    remember(folder, a=FACTS)
    assert not FileMemory("things", folder).knows("a", FACTS)
