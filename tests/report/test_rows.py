"""The study as rows: what records say, and what lies in the folders."""

import json
import shutil

import pytest

from mimicry.common.errors import UsageError
from mimicry.report.grids import GridMaker
from mimicry.report.rows import AdapterRow
from mimicry.study import ImageFolder, State
from mimicry.study.matrix import Selection
from mimicry.study.pairing import held_out
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters import TRAINING_RUN, WEIGHTS
from tests.report.made_up import STACK, content_of, put, put_all
from tests.small_study import ANNA, BORIS, CLARA, COUNTERED, DORA, MIST, ORIGINAL, write_images


def row_of(tree: StudyTree, condition: Condition, artist: Artist = ANNA) -> AdapterRow:
    wanted = AdapterId(STACK, condition, artist)
    (row,) = (row for row in content_of(tree).rows if row.adapter == wanted)
    return row


def test_a_row_holds_what_the_record_says(tree: StudyTree) -> None:
    put(
        tree,
        MIST,
        ANNA,
        0.36,
        seconds=12.5,
        images=[
            {"name": name, "size": size, "psnr": psnr, "linf": linf}
            for (name, size), psnr, linf in zip(
                (
                    (path.name, path.stat().st_size)
                    for path in sorted((tree.protected_art / "mist" / str(ANNA)).iterdir())
                ),
                (30.0, None, 34.0),
                (8, 0, 16),
                strict=True,
            )
        ],
    )

    row = row_of(tree, MIST)

    assert (row.state, row.reason) == (State.COMPLETE, "")
    assert row.eval_loss is not None
    assert (row.eval_loss.start, row.eval_loss.end, row.eval_loss.on) == (0.5, 0.36, "held-out")
    assert (row.seed, row.seconds, row.device, row.psnr, row.linf) == (42, 12.5, "cuda", 32.0, 8.0)
    assert row.weights_sha256 and row.recipe_hash


def test_there_is_a_row_for_every_cell_of_the_study(tree: StudyTree) -> None:
    put(tree, ORIGINAL, ANNA, 0.3)
    shutil.rmtree(tree.protected_art / "mist" / str(BORIS))

    states = {(row.adapter.artist, row.adapter.condition): row.state for row in content_of(tree).rows}

    # Countered by nothing that was protected by nothing: robust_samples names mist alone.
    assert states.keys() == {(a, c) for a in (ANNA, BORIS, CLARA, DORA) for c in (ORIGINAL, MIST, COUNTERED)}
    assert states[ANNA, ORIGINAL] is State.COMPLETE
    assert states[BORIS, MIST] is State.NO_DATA
    assert states[ANNA, MIST] is State.WAITING


@pytest.mark.parametrize(
    ("status", "error", "state"),
    [
        ("failed", "out of memory", State.FAILED),
        ("interrupted", None, State.INTERRUPTED),
        ("running", None, State.INTERRUPTED),
    ],
)
def test_what_became_of_a_training_without_an_adapter_is_told(
    tree: StudyTree, status: str, error: str | None, state: State
) -> None:
    put(tree, ORIGINAL, ANNA, 0.3)
    folder = put(tree, MIST, ANNA, 0.36)
    (folder / WEIGHTS).unlink()
    record = json.loads((folder / TRAINING_RUN).read_text("utf-8"))
    (folder / TRAINING_RUN).write_text(json.dumps({**record, "status": status, "error": error}))

    row = row_of(tree, MIST)

    assert row.state is state
    assert (error or "") in row.reason
    assert (row.eval_loss, row.seed, row.weights_sha256, row.recipe_hash) == (None, None, None, None)


def test_other_images_than_trained_on_make_an_adapter_stale(tree: StudyTree) -> None:
    put(tree, MIST, ANNA, 0.36)
    write_images(tree.protected_art / "mist" / str(ANNA), stems=("09_new",))

    assert row_of(tree, MIST).state is State.STALE


def test_without_images_on_this_machine_an_adapter_is_taken_as_it_is(tree: StudyTree) -> None:
    put(tree, ORIGINAL, ANNA, 0.3)
    put(tree, MIST, ANNA, 0.36)
    shutil.rmtree(tree.protected_art)

    assert row_of(tree, MIST).state is State.COMPLETE


def test_damaged_weights_and_records_are_told(tree: StudyTree) -> None:
    put(tree, ORIGINAL, ANNA, 0.3)
    (put(tree, MIST, ANNA, 0.36) / WEIGHTS).write_bytes(b"nothing")
    (put(tree, MIST, BORIS, 0.36) / TRAINING_RUN).write_text("[1")

    assert row_of(tree, MIST, ANNA).state is State.BROKEN
    assert row_of(tree, MIST, BORIS).state is State.BROKEN


@pytest.mark.parametrize(
    "facts",
    [
        {"skipped": "why"},
        {"start": "x", "end": 1, "on": "held-out", "images": 2, "timesteps": [1]},
        {"start": 0.5, "end": None, "on": "held-out", "images": 2, "timesteps": [1]},
        [0.5, 0.3],
    ],
)
def test_an_evaluation_that_is_not_whole_is_none(tree: StudyTree, facts: object) -> None:
    put(tree, MIST, ANNA, 0.36, eval_loss=facts)

    assert row_of(tree, MIST).eval_loss is None


def test_filters_choose_and_the_original_stays(tree: StudyTree) -> None:
    put_all(tree)

    found = content_of(
        tree, countermeasures=("noisy_upscaling",), selection=Selection(artists=("Anna_Berg",))
    )

    assert found.main.group.conditions == [ORIGINAL, COUNTERED]
    assert found.main.group.artists == [ANNA]


def test_a_study_without_adapters_is_refused(tree: StudyTree) -> None:
    with pytest.raises(UsageError, match="apply_tuning"):
        content_of(tree)


def test_paintings_that_were_held_out_make_no_adapter_stale(tree: StudyTree) -> None:
    held = held_out(ImageFolder.read(tree.original_art / str(ANNA)).stems, 1)
    for condition in (ORIGINAL, MIST):
        images = ImageFolder.read(tree.images_of(tree.source(condition).root, ANNA)).without(held)
        put(tree, condition, ANNA, 0.3, options={"hold_out": 1}, images=images.records(), held_out=list(held))

    row = row_of(tree, MIST)

    assert (row.state, row.reason) == (State.COMPLETE, "")
    group = content_of(tree).main.group
    grid = GridMaker(tree, group, paintings=9, samples=0).grid(ANNA)
    shown = [row.title for row in grid.rows if row.kind == "painting"]
    assert len(shown) == 2
    assert not any(name.startswith(tuple(held)) for name in shown)
