import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mimicry.common import files
from mimicry.study import tracker
from mimicry.study.tracker import ProgressTracker
from mimicry.study.tree import State
from tests.hostile_names import HOSTILE_NAMES, over_hostile_names
from tests.study.tracker_files import FOREIGN, KEY, STEP, document, tracker_at, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress" / "progress_tracker.json"


class TestRecord:
    def test_a_new_tracker_has_the_whole_schema(self, path: Path) -> None:
        tracker_at(path).record(KEY, status="complete", seconds=1.5, images=20)
        written = document(path)
        assert list(written) == ["metadata", "step_status", "bookmarks", "snapshot"]
        assert set(written["metadata"]) == {"created_at", "last_updated_at", "data_root"}
        assert written["metadata"]["data_root"] == str(Path("data").absolute())
        assert written["step_status"] == {STEP: "complete"}
        assert written["snapshot"] == {}
        bookmark = written["bookmarks"][STEP][KEY]
        assert bookmark.pop("updated_at") == written["metadata"]["last_updated_at"]
        assert bookmark == {"status": "complete", "seconds": 1.5, "images": 20}

    def test_fields_are_merged_and_none_removes(self, path: Path) -> None:
        ours = tracker_at(path)
        ours.record(KEY, status=State.FAILED, error="no memory", steps=3)
        ours.record(KEY, status=State.COMPLETE, error=None, never_there=None, loss=0.1)
        bookmark = ours.bookmarks()[KEY]
        assert list(bookmark) == ["status", "steps", "updated_at", "loss"]
        assert (bookmark["status"], bookmark["steps"], bookmark["loss"]) == ("complete", 3, 0.1)

    def test_updated_at_is_renewed_for_the_recorded_bookmark_only(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = tracker_at(path)
        monkeypatch.setattr(tracker, "utc_now", lambda: "then")
        ours.record_many({"a": {}, "b": {}})
        monkeypatch.setattr(tracker, "utc_now", lambda: "now")
        ours.record("b", status="complete")
        assert {key: item["updated_at"] for key, item in ours.bookmarks().items()} == {
            "a": "then",
            "b": "now",
        }
        metadata = document(path)["metadata"]
        assert (metadata["created_at"], metadata["last_updated_at"]) == ("then", "now")

    def test_a_bookmark_is_pending_until_told_otherwise(self, path: Path) -> None:
        ours = tracker_at(path)
        ours.record(KEY, images=20)
        assert ours.bookmarks()[KEY]["status"] == "waiting"
        ours.record(KEY, status="interrupted")
        ours.record(KEY, images=21)
        assert ours.bookmarks()[KEY]["status"] == "interrupted"

    @pytest.mark.parametrize("status", ["completed", "", None, 1])
    def test_an_unknown_status_is_refused_and_nothing_is_written(self, path: Path, status: Any) -> None:
        with pytest.raises(ValueError, match="State"):
            tracker_at(path).record_many({"a": {"status": "waiting"}, "b": {"status": status}})
        assert not path.parent.exists()

    @pytest.mark.parametrize("other", [status for status in State if status != "complete"])
    def test_the_step_is_complete_when_all_its_bookmarks_are(self, path: Path, other: str) -> None:
        ours = tracker_at(path)
        ours.record_many({"a": {"status": "complete"}, "b": {"status": other}})
        assert document(path)["step_status"] == {STEP: "in_progress"}
        ours.record("b", status="complete")
        assert document(path)["step_status"] == {STEP: "complete"}
        ours.record("c", status=other)
        assert document(path)["step_status"] == {STEP: "in_progress"}

    def test_the_step_is_complete_when_all_that_is_expected_is(self, path: Path) -> None:
        asked: list[None] = []

        def expected() -> set[str]:
            asked.append(None)
            if ours.lock_path.exists():
                with ours.lock_path.open("r") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is held
            return {"a", "b"}

        ours = ProgressTracker(path, step=STEP, data_root=Path("data"), expected=expected)
        ours.record_many({"a": {"status": "complete"}, "without images": {"status": "blocked"}})
        assert document(path)["step_status"] == {STEP: "in_progress"}
        ours.record("b", status="complete")
        assert document(path)["step_status"] == {STEP: "complete"}
        assert len(asked) == 2

    @pytest.mark.parametrize("expected", [None, lambda: {"a"}])
    def test_the_step_is_not_started_while_all_is_blocked(
        self, path: Path, expected: Callable[[], set[str]] | None
    ) -> None:
        ours = ProgressTracker(path, step=STEP, data_root=Path("data"), expected=expected)
        ours.record_many({"a": {"status": "blocked"}, "b": {"status": "blocked"}})
        assert document(path)["step_status"] == {STEP: "not_started"}
        ours.record("a", status="waiting")
        assert document(path)["step_status"] == {STEP: "in_progress"}

    def test_where_nothing_is_expected_all_bookmarks_count(self, path: Path) -> None:
        ours = ProgressTracker(path, step=STEP, data_root=Path("data"), expected=set)
        ours.record("a", status="complete")
        assert document(path)["step_status"] == {STEP: "complete"}

    def test_many_bookmarks_take_one_write(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        writes: list[Path] = []

        def counted(path: Path) -> AbstractContextManager[Path]:
            writes.append(path)
            return files.atomic_path(path)

        monkeypatch.setattr(tracker, "atomic_path", counted)
        ours = tracker_at(path)
        ours.record_many({f"artist_{number}": {"images": number} for number in range(50)})
        assert len(writes) == 1
        assert [item["images"] for item in ours.bookmarks().values()] == list(range(50))

    def test_nothing_to_record_writes_nothing(self, path: Path) -> None:
        tracker_at(path).record_many({})
        assert not path.parent.exists()

    def test_the_file_is_easy_to_read(self, path: Path) -> None:
        tracker_at(path).record(KEY, status="complete", name="Élise")
        lines = path.read_text(encoding="utf-8").splitlines()
        start = lines.index(f'      "{KEY}": {{')
        assert lines[start + 1 : start + 3] == ['        "status": "complete",', '        "name": "Élise",']

    @pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
    def test_a_loss_that_json_has_no_number_for_becomes_a_word(self, path: Path, loss: float) -> None:
        tracker_at(path).record(KEY, status="failed", loss=loss)

        def refuse(word: str) -> None:
            raise AssertionError(word)

        written = json.loads(path.read_bytes(), parse_constant=refuse)
        assert written["bookmarks"][STEP][KEY]["loss"] == str(loss)

    @over_hostile_names
    def test_hostile_keys_and_folders(self, hostile_name: str, tmp_path: Path) -> None:
        path = tmp_path / hostile_name / "progress_tracker.json"
        key = f"hf_diffusers/none/none/historical/impressionism/{hostile_name}"
        ours = tracker_at(path)
        ours.record(key, status="complete", log=f"/logs/{hostile_name}")
        ours.record("another", status="failed")
        assert ours.bookmarks()[key]["log"] == f"/logs/{hostile_name}"

    def test_hostile_keys_stay_apart(self, path: Path) -> None:
        ours = tracker_at(path)
        for number, name in enumerate(HOSTILE_NAMES):
            ours.record(name, images=number)
        assert {key: item["images"] for key, item in ours.bookmarks().items()} == {
            name: number for number, name in enumerate(HOSTILE_NAMES)
        }

    def test_a_name_that_is_no_utf8_leaves_the_file_readable_for_other_steps(self, path: Path) -> None:
        key = os.fsdecode(b"caf\xe9")
        ours = tracker_at(path)
        ours.record(key, status="complete")
        assert list(document(path)["bookmarks"][STEP]) == [key]
        assert list(ours.bookmarks()) == [key]


class TestWhatIsNotOurs:
    def test_survives_in_its_order(self, path: Path) -> None:
        write(path, FOREIGN)
        ours = tracker_at(path)
        ours.record("new", status="complete")
        ours.record_many({KEY: {"status": "complete", "loss": None}})
        expected = json.loads(json.dumps(FOREIGN))
        written = document(path)
        now = written["metadata"]["last_updated_at"]
        expected["metadata"]["last_updated_at"] = now
        expected["step_status"][STEP] = "in_progress"  # an "archived" bookmark is not complete
        bookmarks = expected["bookmarks"][STEP]
        bookmarks[KEY] = {"hub": "url", "updated_at": now, "status": "complete"}
        bookmarks["new"] = {
            "status": "complete",
            "updated_at": written["bookmarks"][STEP]["new"]["updated_at"],
        }
        assert json.dumps(written, sort_keys=True) == json.dumps(expected, sort_keys=True)
        assert list(written) == list(expected)
        for part in ("metadata", "step_status", "bookmarks"):
            assert list(written[part]) == list(expected[part])
        assert list(written["bookmarks"][STEP]) == ["zzz", KEY, "new"]
        assert list(written["bookmarks"]["step_9"]) == ["z", "a"]

    def test_is_not_shown_as_ours(self, path: Path) -> None:
        write(path, FOREIGN)
        assert tracker_at(path).bookmarks() == FOREIGN["bookmarks"][STEP]
        assert tracker_at(path, step="step_9").bookmarks() == FOREIGN["bookmarks"]["step_9"]
        assert tracker_at(path, step="step_2").bookmarks() == {}

    def test_an_empty_object_is_a_tracker(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(path, {})
        ours = tracker_at(path, rebuilt={"never": {"status": "complete"}})
        assert ours.bookmarks() == {}
        ours.record("a", status="complete")
        assert list(ours.bookmarks()) == ["a"]
        assert capsys.readouterr().err == ""

    def test_a_link_stays_a_link(self, path: Path, tmp_path: Path) -> None:
        write(tmp_path / "shared" / "tracker.json", FOREIGN)
        path.parent.mkdir()
        path.symlink_to(tmp_path / "shared" / "tracker.json")
        tracker_at(path).record("a", status="complete")
        assert path.is_symlink()
        assert "a" in document(tmp_path / "shared" / "tracker.json")["bookmarks"][STEP]


def test_importing_the_tracker_is_quick() -> None:
    program = (
        "import sys, mimicry.study.tracker\n"
        "print({'torch', 'numpy', 'filelock', 'huggingface_hub'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
