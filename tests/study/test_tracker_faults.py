import errno
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimicry.common.errors import MimicryError
from mimicry.study import tracker
from mimicry.study.tracker import Bookmarks, ProgressTracker
from tests.study.tracker_files import (
    FOREIGN,
    KEY,
    STEP,
    document,
    held_lock,
    over_broken,
    state_of,
    tracker_at,
    write,
)

NOBODY = 65534


@pytest.fixture(autouse=True)
def _look_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "LOOK_AGAIN_SECONDS", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress" / "progress_tracker.json"


@pytest.fixture
def ordinary_user_folder() -> Iterator[Path]:
    """A folder of a user to whom permissions apply: root, as in a container, becomes nobody for the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.geteuid() != 0:
            yield folder
            return
        # Nobody may not be allowed to read where the packages are installed.
        importlib.import_module("filelock")
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)


class TestReading:
    def test_a_missing_tracker_has_no_bookmarks_and_is_not_made(self, path: Path) -> None:
        assert tracker_at(path, rebuilt={"a": {"status": "complete"}}).bookmarks() == {}
        assert not path.parent.exists()

    def test_writes_nothing_and_takes_no_lock(self, path: Path) -> None:
        ours = tracker_at(path)
        ours.record(KEY, status="complete")
        before = state_of(path.parent)
        with held_lock(ours.lock_path):
            before = state_of(path.parent)
            assert list(ours.bookmarks()) == [KEY]
        assert state_of(path.parent) == before

    @over_broken
    def test_a_broken_tracker_is_left_alone_and_said_loudly(
        self, content: bytes, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(path, content)
        before = state_of(path.parent)
        assert tracker_at(path, rebuilt={"b": {"status": "complete"}}).bookmarks() == {
            "b": {"status": "complete"}
        }
        assert state_of(path.parent) == before
        assert path.read_bytes() == content
        printed = capsys.readouterr()
        assert printed.err.startswith(f"warning: {path} ")
        assert printed.out == ""

    def test_a_file_that_is_being_written_in_place_is_looked_at_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(path, b'{"bookm')
        monkeypatch.setattr(time, "sleep", lambda seconds: write(path, FOREIGN))
        ours = tracker_at(path, rebuilt={})
        assert ours.bookmarks() == FOREIGN["bookmarks"][STEP]
        write(path, b'{"bookm')
        ours.record("a", status="complete")
        assert document(path)["version"] == 9
        assert capsys.readouterr().err == ""


class TestRebuilding:
    @over_broken
    def test_a_broken_tracker_is_set_aside_and_never_deleted(
        self, content: bytes, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(path, content)
        ours = tracker_at(path, rebuilt={"b": {"status": "complete", "loss": 0.5}})
        ours.record("a", status="complete")
        bookmarks = ours.bookmarks()
        assert list(bookmarks) == ["b", "a"]
        assert bookmarks["b"] == {"status": "complete", "loss": 0.5}
        assert document(path)["step_status"][STEP] == "complete"
        (aside,) = path.parent.glob("progress_tracker.unreadable-*.json")
        assert aside.read_bytes() == content
        warning = capsys.readouterr().err
        assert str(path) in warning
        assert str(aside) in warning
        ours.record("c", status="complete")
        assert capsys.readouterr().err == ""

    @over_broken
    def test_a_broken_tracker_is_mended_when_there_is_nothing_to_record(
        self, content: bytes, path: Path
    ) -> None:
        write(path, content)
        rebuilt = {"b": {"status": "complete"}}
        tracker_at(path, rebuilt=rebuilt).record_many({})
        assert tracker_at(path).bookmarks() == rebuilt
        (aside,) = path.parent.glob("progress_tracker.unreadable-*.json")
        assert aside.read_bytes() == content

    def test_a_sound_or_missing_one_is_not_written_when_there_is_nothing_to_record(self, path: Path) -> None:
        tracker_at(path).record_many({})
        assert not path.exists()
        tracker_at(path).record("a", status="complete")
        before = path.stat()
        tracker_at(path).record_many({})
        assert path.stat().st_ino == before.st_ino

    def test_what_is_sound_in_a_broken_tracker_is_kept(self, path: Path) -> None:
        broken = json.loads(json.dumps(FOREIGN))
        broken["step_status"] = "lost"
        broken["bookmarks"][STEP]["bad"] = 3
        write(path, broken)
        rebuilt = {KEY: {"status": "complete"}, "bad": {"status": "complete"}}
        ours = tracker_at(path, rebuilt=rebuilt)
        ours.record("a", status="waiting")
        written = document(path)
        for name in ("version", "snapshot", "extra"):
            assert written[name] == FOREIGN[name]
        assert written["bookmarks"]["step_9"] == FOREIGN["bookmarks"]["step_9"]
        assert written["step_status"] == {STEP: "in_progress"}
        assert ours.bookmarks()[KEY] == FOREIGN["bookmarks"][STEP][KEY]
        assert ours.bookmarks()["bad"] == {"status": "complete"}

    def test_a_tracker_that_is_gone_is_rebuilt_by_the_next_record(self, path: Path) -> None:
        ours = tracker_at(path, rebuilt={"b": {"status": "complete"}})
        ours.record("a", status="failed")
        assert {key: item["status"] for key, item in ours.bookmarks().items()} == {
            "b": "complete",
            "a": "failed",
        }

    def test_a_sound_tracker_is_never_rebuilt(self, path: Path) -> None:
        write(path, FOREIGN)

        def rebuild() -> Bookmarks:
            raise AssertionError("the tracker was sound")

        ours = ProgressTracker(path, step=STEP, data_root=Path("data"), rebuild=rebuild)
        ours.record("a", status="complete")
        assert len(ours.bookmarks()) == 3

    def test_the_lock_is_free_while_the_bookmarks_are_rebuilt(self, path: Path) -> None:
        write(path, b"{")

        def rebuild() -> Bookmarks:
            with ours.lock_path.open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return {"b": {"status": "complete"}}

        ours = ProgressTracker(path, step=STEP, data_root=Path("data"), rebuild=rebuild)
        ours.record("a", status="complete")
        assert list(ours.bookmarks()) == ["b", "a"]


class TestFaults:
    def test_a_lock_that_is_not_to_be_had_is_named(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = tracker_at(path)
        ours.record("a", status="complete")
        before = path.read_bytes()
        monkeypatch.setattr(tracker, "LOCK_TIMEOUT_SECONDS", 0.1)
        with held_lock(ours.lock_path), pytest.raises(MimicryError, match=r"0\.1 seconds") as raised:
            ours.record("b", status="complete")
        assert str(ours.lock_path) in str(raised.value)
        assert path.read_bytes() == before
        ours.record("b", status="complete")
        assert list(ours.bookmarks()) == ["a", "b"]

    def test_the_lock_is_open_to_the_lab_whatever_the_umask(self, path: Path) -> None:
        before = os.umask(0o077)
        try:
            ours = tracker_at(path)
            ours.record("a", status="complete")
        finally:
            os.umask(before)
        assert ours.lock_path.stat().st_mode & 0o777 == 0o666
        assert ours.lock_path.name.startswith(".")

    def test_a_write_protected_tracker_is_named_and_left_alone(self, path: Path) -> None:
        write(path, FOREIGN)
        path.chmod(0o444)
        with pytest.raises(MimicryError, match="write-protected") as raised:
            tracker_at(path).record("a", status="complete")
        assert str(path) in str(raised.value)
        assert document(path) == FOREIGN

    def test_a_write_protected_folder_is_named(self, ordinary_user_folder: Path) -> None:
        path = ordinary_user_folder / "progress_tracker.json"
        write(path, FOREIGN)
        ordinary_user_folder.chmod(0o555)
        with pytest.raises(MimicryError, match="Permission denied") as raised:
            tracker_at(path).record("a", status="complete")
        ordinary_user_folder.chmod(0o755)
        assert str(ordinary_user_folder) in str(raised.value)
        assert os.listdir(ordinary_user_folder) == [path.name]  # noqa: PTH208
        assert document(path) == FOREIGN

    def test_a_folder_that_became_read_only_later_is_named(self, ordinary_user_folder: Path) -> None:
        path = ordinary_user_folder / "progress_tracker.json"
        ours = tracker_at(path)
        ours.record("a", status="complete")
        before = path.read_bytes()
        ordinary_user_folder.chmod(0o555)
        with pytest.raises(MimicryError, match="Permission denied") as raised:
            ours.record("b", status="complete")
        ordinary_user_folder.chmod(0o755)
        assert str(path) in str(raised.value)
        assert path.read_bytes() == before

    def test_a_tracker_that_may_not_be_read_is_named(self, ordinary_user_folder: Path) -> None:
        path = ordinary_user_folder / "progress_tracker.json"
        write(path, FOREIGN)
        path.chmod(0o200)
        for call in (tracker_at(path).bookmarks, lambda: tracker_at(path).record("a", status="complete")):
            with pytest.raises(MimicryError, match="cannot be read: Permission denied") as raised:
                call()
            assert str(path) in str(raised.value)
        path.chmod(0o600)
        assert document(path) == FOREIGN

    def test_a_folder_in_its_place_is_named(self, path: Path) -> None:
        path.mkdir(parents=True)
        for call in (tracker_at(path).bookmarks, lambda: tracker_at(path).record("a", status="complete")):
            with pytest.raises(MimicryError, match="cannot be read: Is a directory") as raised:
                call()
            assert str(path) in str(raised.value)

    def test_a_file_in_the_place_of_its_folder_is_named(self, path: Path) -> None:
        path.parent.write_bytes(b"no folder")
        with pytest.raises(MimicryError, match="cannot be written: File exists") as raised:
            tracker_at(path).record("a", status="complete")
        assert str(path) in str(raised.value)

    @pytest.mark.parametrize("content", [json.dumps(FOREIGN).encode(), b'{"trunc'], ids=["sound", "broken"])
    def test_a_full_disk_changes_nothing(
        self, content: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(path, content)

        def full(self: Path, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        ours = tracker_at(path)
        with pytest.raises(MimicryError, match="No space left on device") as raised:
            ours.record("a", status="complete")
        assert str(path) in str(raised.value)
        assert path.read_bytes() == content
        assert {entry.name for entry in path.parent.iterdir()} == {path.name, ours.lock_path.name}

    def test_a_field_that_is_no_json_changes_nothing(self, path: Path) -> None:
        write(path, FOREIGN)
        with pytest.raises(TypeError):
            tracker_at(path).record("a", log=Path("train.log"))
        assert document(path) == FOREIGN


def start(program: str, *words: str) -> subprocess.Popen[bytes]:
    preamble = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from mimicry.study import tracker as module\nmodule.LOOK_AGAIN_SECONDS = 0\n"
        "path, step, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "tracker = module.ProgressTracker(path, step=step, data_root=Path('data'))\n"
    )
    return subprocess.Popen([sys.executable, "-c", preamble + program, *words])


class TestSeveralProcesses:
    def test_all_bookmarks_arrive(self, path: Path) -> None:
        write(path, FOREIGN)
        program = "for number in range(20): tracker.record(f'{name}/{number}', status='complete')"
        steps = [STEP, "step_4"]
        children = [start(program, str(path), steps[name % 2], str(name)) for name in range(8)]
        assert [child.wait() for child in children] == [0] * 8
        expected = {f"{name}/{number}" for name in range(8) for number in range(20)}
        ours = set(tracker_at(path).bookmarks()) - set(FOREIGN["bookmarks"][STEP])
        theirs = set(tracker_at(path, step="step_4").bookmarks())
        assert ours == {key for key in expected if int(key[0]) % 2 == 0}
        assert theirs == expected - ours
        assert document(path)["bookmarks"]["step_9"] == FOREIGN["bookmarks"]["step_9"]
        assert {entry.name for entry in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}

    def test_a_writer_killed_at_any_instant_leaves_a_whole_tracker_and_a_free_lock(self, path: Path) -> None:
        write(path, FOREIGN)
        program = "number = 0\nwhile True: tracker.record(name, number=number); number += 1"
        ours = tracker_at(path)
        for attempt in range(4):
            child = start(program, str(path), STEP, f"killed_{attempt}")
            while ours.bookmarks().get(f"killed_{attempt}", {}).get("number", 0) < 3 + attempt:
                assert child.poll() is None
                time.sleep(0.003)
            child.kill()
            child.wait()
            assert document(path)["bookmarks"][STEP][f"killed_{attempt}"]["number"] >= 3
            ours.record("after", number=attempt)
            assert ours.bookmarks()["after"]["number"] == attempt
        assert document(path)["snapshot"] == FOREIGN["snapshot"]
        assert {entry.name for entry in path.parent.iterdir()} == {path.name, ours.lock_path.name}

    @pytest.mark.parametrize("content", [json.dumps(FOREIGN).encode(), b'{"trunc'], ids=["sound", "broken"])
    @pytest.mark.parametrize("instant", ["replace", "write_bytes", "chmod"])
    def test_a_writer_killed_before_the_rename_changes_nothing(
        self, instant: str, content: bytes, path: Path
    ) -> None:
        write(path, content)
        program = (
            f"Path.{instant} = lambda *words: os.kill(os.getpid(), signal.SIGKILL)\n"
            "tracker.record('killed', status='complete')"
        )
        child = start(program, str(path), STEP, "-")
        assert child.wait() == -signal.SIGKILL
        leftovers = [entry for entry in path.parent.iterdir() if entry.name.startswith(".tmp-")]
        assert len(leftovers) == 1
        ours = tracker_at(path)
        asides = [*path.parent.glob("*unreadable*")]
        # `chmod` comes after a broken file was set aside: the tracker is gone then, and its content is not.
        assert (asides[0] if asides else path).read_bytes() == content
        ours.record("after", status="complete")
        assert "after" in ours.bookmarks()
        assert "killed" not in ours.bookmarks()
        assert not leftovers[0].exists()
