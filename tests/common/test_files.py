import errno
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mimicry.common.files import (
    FileMemory,
    atomic_folder,
    atomic_path,
    canonical_json,
    read_json,
    remove_leftovers,
    set_aside,
    sha256_file,
    sha256_text,
    write_bytes,
    write_json,
)
from tests.hostile_names import over_hostile_names

NO_UTF8_NAME = os.fsdecode(b"caf\xe9")


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names as they are, lone surrogates included


class TestAtomicPath:
    def test_replaces_the_old_content(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "file", b"old")
        write_bytes(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert names_in(tmp_path) == ["file"]

    def test_makes_the_folders_above(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "a" / "b" / "file", b"new")
        assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"

    def test_the_name_appears_only_when_the_content_is_complete(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "file.bin") as temporary:
            temporary.write_bytes(b"half")
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".bin"
            assert temporary.name.startswith(".")
            assert not (tmp_path / "file.bin").exists()
        assert names_in(tmp_path) == ["file.bin"]

    def test_a_failing_writer_leaves_the_old_content_and_nothing_else(self, tmp_path: Path) -> None:
        write_bytes(tmp_path / "file", b"old")
        with pytest.raises(RuntimeError, match="in the middle"), atomic_path(tmp_path / "file") as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("in the middle")
        assert (tmp_path / "file").read_bytes() == b"old"
        assert names_in(tmp_path) == ["file"]

    def test_a_full_disk_leaves_the_old_content_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_bytes(tmp_path / "file", b"old")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_bytes(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
        assert names_in(tmp_path) == ["file"]

    def test_the_content_is_on_disk_before_the_name_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[tuple[bool, bool]] = []

        def fsync(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            synced.append((is_folder, (tmp_path / "file").exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        write_bytes(tmp_path / "file", b"new")
        file_before_the_name, folder_after_it = (False, False), (True, True)
        assert synced == [file_before_the_name, folder_after_it]

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
    def test_permissions_follow_the_umask(self, tmp_path: Path, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            write_bytes(tmp_path / "file", b"new")
            assert os.umask(umask) == umask
        finally:
            os.umask(before)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode

    @over_hostile_names
    def test_hostile_folders(self, hostile_name: str, tmp_path: Path) -> None:
        write_json(tmp_path / hostile_name / "file.json", [hostile_name])
        assert names_in(tmp_path) == [hostile_name]
        assert names_in(tmp_path / hostile_name) == ["file.json"]
        assert read_json(tmp_path / hostile_name / "file.json") == [hostile_name]

    @over_hostile_names
    def test_hostile_file_names(self, hostile_name: str, tmp_path: Path) -> None:
        write_bytes(tmp_path / hostile_name, b"new")
        assert names_in(tmp_path) == [hostile_name]


def test_remove_leftovers_removes_those_of_killed_writers_and_no_others(tmp_path: Path) -> None:
    for name in ("file.json", "file", "other.json"):
        program = (
            "import os, signal, sys; from pathlib import Path; from mimicry.common.files import atomic_path\n"
            "with atomic_path(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
        )
        run = subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=False)
        assert run.returncode == -signal.SIGKILL
    (tmp_path / "file.json").write_bytes(b"kept")
    assert len(names_in(tmp_path)) == 4
    remove_leftovers(tmp_path / "file.json")
    assert len(names_in(tmp_path)) == 3
    remove_leftovers(tmp_path / "file")
    remove_leftovers(tmp_path / "other.json")
    assert names_in(tmp_path) == ["file.json"]


def test_remove_leftovers_leaves_what_another_machine_may_be_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_path(tmp_path / "file.json") as theirs:
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        remove_leftovers(tmp_path / "file.json")
        assert theirs.exists()
        an_hour_ago = time.time() - 3700
        os.utime(theirs, (an_hour_ago, an_hour_ago))
        remove_leftovers(tmp_path / "file.json")
        assert not theirs.exists()
        theirs.touch()


class TestJson:
    def test_canonical_json_is_equal_for_equal_values(self) -> None:
        assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "é"}}) == (
            '{"a":{"c":"é","d":null},"b":[1,2.5]}'
        )
        assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})

    def test_written_json_is_for_people(self, tmp_path: Path) -> None:
        write_json(tmp_path / "file.json", {"b": "é", "a": 1})
        assert (tmp_path / "file.json").read_text(encoding="utf-8") == '{\n  "b": "é",\n  "a": 1\n}\n'

    def test_a_value_that_is_not_json_leaves_the_old_content(self, tmp_path: Path) -> None:
        write_json(tmp_path / "file.json", "old")
        with pytest.raises(TypeError):
            write_json(tmp_path / "file.json", {"a": {1, 2}})
        assert read_json(tmp_path / "file.json") == "old"

    def test_a_name_that_is_not_utf8_stays_readable_for_every_program(self, tmp_path: Path) -> None:
        value = {NO_UTF8_NAME: [NO_UTF8_NAME, "é", "\U0001f3a8"]}
        write_json(tmp_path / "file.json", value)
        text = (tmp_path / "file.json").read_bytes().decode("utf-8")  # strict
        assert json.loads(text) == value
        assert read_json(tmp_path / "file.json") == value

    def test_a_byte_order_mark_is_allowed(self, tmp_path: Path) -> None:
        (tmp_path / "file.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
        assert read_json(tmp_path / "file.json") == {"a": 1}

    @pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\0" * 64, b"\xff\xfe\xfa", b"{'a': 1}"])
    def test_text_that_is_not_json_raises_value_error(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "file.json").write_bytes(content)
        with pytest.raises(ValueError):
            read_json(tmp_path / "file.json")


def test_sha256_of_text_and_file(tmp_path: Path) -> None:
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_text("abc") == abc
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == abc


def test_sha256_of_a_file_larger_than_a_chunk(tmp_path: Path) -> None:
    text = "0123456789abcdef" * 200_000
    (tmp_path / "file").write_text(text)
    assert sha256_file(tmp_path / "file") == sha256_text(text)


def test_sha256_of_a_name_that_is_not_utf8() -> None:
    assert sha256_text(NO_UTF8_NAME) == hashlib.sha256(b"caf\xed\xb3\xa9").hexdigest()


class TestSetAside:
    def test_moves_what_exists_and_deletes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "weights").write_bytes(b"broken")
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "state").write_bytes(b"inside")
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "kept").write_bytes(b"kept")
        aside = set_aside(tmp_path, ["weights", "missing", "checkpoint", "dangling"], "broken")
        assert aside is not None
        assert aside.parent == tmp_path / "set_aside"
        assert aside.name.endswith("-broken")
        assert names_in(tmp_path) == ["kept", "set_aside"]
        assert names_in(aside) == ["checkpoint", "dangling", "weights"]
        assert (aside / "weights").read_bytes() == b"broken"
        assert (aside / "checkpoint" / "state").read_bytes() == b"inside"

    def test_does_nothing_when_there_is_nothing(self, tmp_path: Path) -> None:
        assert set_aside(tmp_path, ["missing"], "broken") is None
        assert names_in(tmp_path) == []

    def test_twice_gives_two_folders(self, tmp_path: Path) -> None:
        for content in (b"first", b"second"):
            (tmp_path / "weights").write_bytes(content)
            set_aside(tmp_path, ["weights"], "broken")
        kept = [path.read_bytes() for path in (tmp_path / "set_aside").glob("*/weights")]
        assert sorted(kept) == [b"first", b"second"]

    @over_hostile_names
    def test_hostile_folders(self, hostile_name: str, tmp_path: Path) -> None:
        folder = tmp_path / hostile_name
        folder.mkdir()
        (folder / "weights").write_bytes(b"broken")
        aside = set_aside(folder, ["weights"], "broken")
        assert aside is not None
        assert (aside / "weights").read_bytes() == b"broken"
        assert names_in(folder) == ["set_aside"]


class TestAtomicFolder:
    def test_it_appears_when_it_is_complete(self, tmp_path: Path) -> None:
        umask = os.umask(0o027)
        try:
            with atomic_folder(tmp_path / "state") as temporary:
                (temporary / "a").write_bytes(b"1")
                (temporary / "a").chmod(0o600)
                assert names_in(tmp_path) == [temporary.name]
                assert temporary.name.startswith(".state-")
        finally:
            os.umask(umask)
        assert names_in(tmp_path) == ["state"]
        assert (tmp_path / "state" / "a").read_bytes() == b"1"
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o750
        assert (tmp_path / "state" / "a").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_nothing_is_left_of_an_incomplete_one(self, error: type[BaseException], tmp_path: Path) -> None:
        with pytest.raises(error), atomic_folder(tmp_path / "state") as temporary:
            (temporary / "a").write_bytes(b"1")
            raise error
        assert names_in(tmp_path) == []

    def test_it_replaces_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "old").write_bytes(b"old")
        with pytest.raises(OSError), atomic_folder(tmp_path / "state") as temporary:
            (temporary / "new").write_bytes(b"new")
        assert names_in(tmp_path) == ["state"]
        assert names_in(tmp_path / "state") == ["old"]

    def test_its_files_are_on_disk_before_its_name_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        fsync, rename = os.fsync, Path.rename

        def watched_fsync(descriptor: int) -> None:
            order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            fsync(descriptor)

        def watched_rename(path: Path, target: Path) -> Path:
            order.append("renamed")
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(Path, "rename", watched_rename)
        with atomic_folder(tmp_path / "state") as temporary:
            for name in ("a", "b"):
                (temporary / name).write_bytes(b"1")
        assert sorted(order[:2]) == ["a", "b"]
        assert order[2:] == [temporary.name, "renamed", tmp_path.name]


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
