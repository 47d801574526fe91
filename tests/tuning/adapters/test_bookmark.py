"""Bookmarks as they stand in the tracker, and what is merged into them."""

import json
from pathlib import Path

import pytest

from mimicry.common.files import read_json, write_json
from mimicry.study.tracker import ProgressTracker
from mimicry.study.tree import AdapterId, Artist, Condition, State, StudyTree
from mimicry.tuning.adapters.bookmark import (
    Bookmark,
    complete_bookmark,
    log_path,
    open_tracker,
    read_bookmarks,
    rebuilt_bookmarks,
)
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.training_run import TRAINING_RUN, TrainingRun
from tests.hostile_names import over_hostile_names
from tests.small_study import (
    ANNA,
    BORIS,
    COUNTERED,
    MIST,
    ORIGINAL,
    bookmarks_in,
    output_dir,
    write_adapter,
    write_study,
)
from tests.tuning.lora_files import save_lora

RECORD = {
    "status": "complete",
    "started_at": "2026-01-02T03:04:05+00:00",
    "seconds": 61.5,
    "steps": 500,
    "mean_loss": 0.25,
    "images": [{"name": "a.png"}],
    "recipe_hash": "0a1b",
    "hub": {"repository_id": "lab/x"},
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
    assert (mark.status, mark.images, mark.note, mark.log) == (State.WAITING, 4, "set aside", "a/train.log")
    assert (mark.steps, mark.loss, mark.hub, mark.recipe_hash) == (None, None, None, None)
    assert tracker.bookmarks()["a"]["of_a_later_version"] == 1


def test_a_training_that_left_no_adapter_writes_what_it_knows_and_no_more() -> None:
    mark = Bookmark.ended(State.FAILED, steps=7, error="it burned")
    assert mark.to_json() == {"status": State.FAILED, "steps": 7, "error": "it burned"}


HUB = {"repository_id": "lab/x", "url": "https://hub/lab/x", "commit": "0" * 40}
EVALUATED = {"start": 1.25, "end": 1.125, "images": 3, "timesteps": [500.0]}


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "study", [ANNA, BORIS])


def adapter(
    tree: StudyTree, condition: Condition = MIST, artist: Artist = ANNA, stack: str = "hf_diffusers"
) -> Path:
    images = tree.images_of(tree.original_art, ANNA)
    return write_adapter(output_dir(tree, condition, artist, stack), images, hub=HUB, eval_loss=EVALUATED)


def test_a_complete_bookmark_is_taken_from_the_record(tree: StudyTree) -> None:
    folder = adapter(tree)
    (folder / TRAIN_LOG).write_text("trained")
    run = read_json(folder / TRAINING_RUN)
    write_json(folder / TRAINING_RUN, run | {"recipe_hash": "0a1b"})

    assert complete_bookmark(tree, AdapterFolder(folder)).to_json() == {
        "status": State.COMPLETE,
        "started_at": "2026-01-02T03:04:05+00:00",
        "seconds": 61.5,
        "images": 3,
        "steps": 500,
        "loss": 0.25,
        "eval_loss": EVALUATED,
        "other_numerics": None,
        "unpaired": None,
        "recipe_hash": "0a1b",
        "resumed_from": None,
        "hub": HUB,
        "log": f"models/lora/hf_diffusers/mist__none/{ANNA}/train.log",
        "error": None,
        "note": None,
    }


@pytest.mark.parametrize("record", [None, "{", "[]", '{"images": [1]}', "{}"])
def test_an_adapter_without_a_usable_record_is_complete_and_no_more(
    tree: StudyTree, record: str | None
) -> None:
    folder = output_dir(tree, MIST, ANNA)
    save_lora(folder / WEIGHTS)
    if record is not None:
        (folder / TRAINING_RUN).write_text(record)

    mark = complete_bookmark(tree, AdapterFolder(folder)).to_json()

    assert mark.pop("status") is State.COMPLETE
    assert set(mark.values()) == {None}


def test_the_tracker_lies_in_the_study_and_holds_this_step(tree: StudyTree) -> None:
    tracker = open_tracker(tree)
    assert tracker.bookmarks() == {}
    assert not tree.tracker.parent.exists()

    tracker.record(f"hf_diffusers/mist/none/{ANNA}", status=State.WAITING)

    assert bookmarks_in(tree)[f"mist/none/{ANNA}"]["status"] == "waiting"
    assert tree.tracker == tree.data_root / "progress" / "progress_tracker.json"


def test_lost_bookmarks_are_rebuilt_from_every_stack_and_condition(tree: StudyTree) -> None:
    adapter(tree)
    adapter(tree, COUNTERED, BORIS)
    adapter(tree, stack="another")
    (adapter(tree, artist=BORIS) / WEIGHTS).unlink()
    adapter(tree, stack="hf_diffusers/no_condition")

    found = rebuilt_bookmarks(tree)

    assert found.keys() == {
        f"another/mist/none/{ANNA}",
        f"hf_diffusers/mist/none/{ANNA}",
        f"hf_diffusers/mist/noisy_upscaling/{BORIS}",
    }
    mark = found[f"hf_diffusers/mist/noisy_upscaling/{BORIS}"]
    assert (mark["status"], mark["loss"], mark["hub"]) == ("complete", 0.25, HUB)
    assert mark["eval_loss"] == EVALUATED
    assert "error" not in mark and "log" not in mark
    json.dumps(found)


def test_nothing_is_rebuilt_where_nothing_was_trained(tree: StudyTree) -> None:
    assert rebuilt_bookmarks(tree) == {}


def test_a_torn_tracker_is_replaced_by_what_the_adapters_say(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(tree)
    tree.tracker.parent.mkdir()
    tree.tracker.write_text('{"bookmarks": {"step_3')

    assert open_tracker(tree).bookmarks().keys() == {f"hf_diffusers/mist/none/{ANNA}"}
    assert tree.tracker.read_text() == '{"bookmarks": {"step_3'
    open_tracker(tree).record(f"hf_diffusers/none/none/{BORIS}", status=State.FAILED)

    assert {key: mark["status"] for key, mark in bookmarks_in(tree).items()} == {
        f"mist/none/{ANNA}": "complete",
        f"none/none/{BORIS}": "failed",
    }
    assert "cannot be used as progress tracker" in capsys.readouterr().err


@over_hostile_names
def test_hostile_names_come_back_as_they_were(hostile_name: str, tree: StudyTree) -> None:
    artist = Artist("historical", "baroque", hostile_name)
    folder = adapter(tree, artist=artist)

    assert log_path(tree, AdapterFolder(folder)) == f"models/lora/hf_diffusers/mist__none/{artist}/train.log"
    hidden = hostile_name.startswith(".")
    assert rebuilt_bookmarks(tree).keys() == (set() if hidden else {f"hf_diffusers/mist/none/{artist}"})


def step_status(tree: StudyTree) -> str:
    return str(json.loads(tree.tracker.read_text())["step_status"]["step_3_fine_tune_sd35"])


def test_the_step_is_complete_when_every_cell_that_has_images_is(tree: StudyTree) -> None:
    cells = [(condition, artist) for condition in (ORIGINAL, MIST, COUNTERED) for artist in (ANNA, BORIS)]
    tracker = open_tracker(tree)
    output_dir(tree).mkdir(parents=True)
    for condition, artist in cells[:-1]:
        tracker.record(AdapterId("hf_diffusers", condition, artist).key, status=State.COMPLETE)
        assert step_status(tree) == "in_progress"

    tracker.record(AdapterId("hf_diffusers", *cells[-1]).key, status=State.COMPLETE)
    # It cannot be trained, and has no images either.
    tracker.record(AdapterId("hf_diffusers", Condition("glaze"), ANNA).key, status=State.BLOCKED)

    assert step_status(tree) == "complete"


def test_what_is_recorded_is_not_lost_while_nothing_can_be_said_of_the_images(tree: StudyTree) -> None:
    adapter(tree)
    tree.quarantine.parent.mkdir()
    tree.quarantine.write_text("{")

    open_tracker(tree).record(AdapterId("hf_diffusers", MIST, ANNA).key, status=State.COMPLETE)

    assert step_status(tree) == "in_progress"
    assert bookmarks_in(tree)[f"mist/none/{ANNA}"]["status"] == "complete"


def test_the_file_of_the_study_says_which_cells_the_step_has(tree: StudyTree) -> None:
    tree.study_file.write_text(
        '[study]\nprotections = ["none"]\ncountermeasures = ["none"]\n'
        'artists = ["Anna_Berg"]\nreplicates = 2\n'
    )
    output_dir(tree).mkdir(parents=True)
    tracker = open_tracker(tree)

    tracker.record(AdapterId("hf_diffusers", ORIGINAL, ANNA).key, status=State.COMPLETE)
    assert step_status(tree) == "in_progress"
    tracker.record(AdapterId("hf_diffusers", ORIGINAL, ANNA, "seed-43").key, status=State.COMPLETE)
    assert step_status(tree) == "complete"
    tree.study_file.write_text("[")
    tracker.record(AdapterId("hf_diffusers", ORIGINAL, ANNA).key, status=State.COMPLETE)
    assert step_status(tree) == "in_progress"
