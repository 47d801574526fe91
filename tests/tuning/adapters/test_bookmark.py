"""Bookmarks as they stand in the tracker, and what is merged into them."""

import json
from pathlib import Path

import pytest

from mimicry.study.states import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.adapters.bookmark import Bookmark, read_bookmarks
from mimicry.tuning.adapters.training_run import TrainingRun

HUB = {"repository_id": "lab/x"}
RECORD = {
    "status": "complete",
    "started_at": "2026-01-02T03:04:05+00:00",
    "seconds": 61.5,
    "steps": 500,
    "mean_loss": 0.25,
    "images": [{"name": "a.png"}],
    "recipe_hash": "0a1b",
    "hub": HUB,
}


def test_what_was_written_is_read_again() -> None:
    mark = Bookmark.complete(TrainingRun(RECORD), log="a/train.log").with_fields(
        overwrite={"name": "x", "replaces": []}
    )
    written = {name: value for name, value in mark.to_json().items() if value is not None}

    found = Bookmark.from_json(json.loads(json.dumps(written)))

    assert found == mark
    assert found.to_json() == written
    assert list(written) == [
        *("status", "started_at", "seconds", "images", "steps", "loss", "recipe_hash", "hub", "log"),
        "overwrite",
    ]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"status": "burning", "error": 5, "hub": [], "steps": "7", "loss": None, "overwrite": "x"},
        {"status": ["complete"], "unpaired": {}, "updated_at": 1, "of a later version": {"x": 1}},
    ],
)
def test_a_bookmark_of_another_program_says_as_much_as_can_be_read(content: dict[str, object]) -> None:
    assert Bookmark.from_json(content) == Bookmark()


def test_a_loss_that_json_cannot_hold_stays_a_number() -> None:
    mark = Bookmark.complete(TrainingRun({"mean_loss": "nan"}), log=None)
    assert str(mark.loss) == "nan"


def test_a_waiting_adapter_keeps_nothing_of_a_former_training(tmp_path: Path) -> None:
    tracker = ProgressTracker(tmp_path / "tracker.json", step="step", data_root=tmp_path)
    complete = Bookmark.complete(TrainingRun(RECORD), log="a/train.log")
    tracker.record("a", **complete.to_json(), of_a_later_version=1)

    tracker.record("a", **Bookmark.waiting(4).with_fields(note="set aside").to_json())

    (mark,) = read_bookmarks(tracker).values()
    assert (mark.status, mark.images, mark.note, mark.log) == (State.PENDING, 4, "set aside", "a/train.log")
    assert (mark.steps, mark.loss, mark.hub, mark.recipe_hash) == (None, None, None, None)
    assert tracker.bookmarks()["a"]["of_a_later_version"] == 1


def test_a_training_that_left_no_adapter_writes_what_it_knows_and_no_more() -> None:
    mark = Bookmark.ended(State.FAILED, steps=7, error="it burned")
    assert mark.to_json() == {"status": State.FAILED, "steps": 7, "error": "it burned"}
