"""The state of each cell of a study, told from disk and tracker."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.claims import CLAIM, Claim, this_host
from mimicry.common.errors import UsageError
from mimicry.study.matrix import Selection
from mimicry.study.pairing import held_out
from mimicry.study.tree import AdapterId, Condition, State, StudyTree, series_name
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.status.study_status import series_meant
from tests.small_study import (
    ANNA,
    BASE,
    BORIS,
    CLARA,
    CONFIG,
    COUNTERED,
    DORA,
    EVERYBODY,
    MIST,
    ORIGINAL,
    original,
    output_dir,
    put_adapter,
    write_adapter,
    write_images,
)
from tests.tuning.status.study_states import (
    PLAIN,
    cell_of,
    put_all,
    put_bookmark,
    put_checkpoint,
    put_record,
    read_cell,
    states_of,
    status_of,
)

UNCOUNTERED = Condition("none", "noisy_upscaling")
WITH_IMAGES = (ORIGINAL, MIST, COUNTERED)


class TestWhichCells:
    def test_all_conditions_and_artists_are_meant(self, tree: StudyTree) -> None:
        status = status_of(tree)

        assert status.matrix.conditions == (ORIGINAL, UNCOUNTERED, MIST, COUNTERED)
        assert status.matrix.artists == EVERYBODY
        assert status.counts == {
            State.WAITING: 12,
            State.NO_DATA: 4,
        }
        assert status.exit_code == 3

    def test_a_condition_whose_images_are_gone_has_its_adapters(self, tree: StudyTree) -> None:
        write_images(tree.images_of(tree.protected_art / "cloak", ANNA))
        put_adapter(tree, Condition("cloak"))
        shutil.rmtree(tree.protected_art / "cloak")

        status = status_of(tree)
        named = status_of(tree, protections=("cloak",), countermeasures=("none",))

        assert cell_of(status, Condition("cloak")).state is State.COMPLETE
        assert "images are not there" in cell_of(status, Condition("cloak")).reason
        assert cell_of(status, Condition("cloak"), BORIS).state is State.NO_DATA
        assert named.matrix.conditions == (Condition("cloak"),)

    def test_a_bookmark_is_enough(self, tree: StudyTree) -> None:
        put_bookmark(tree, Condition("glaze"), ANNA, status=State.BLOCKED, error="no images yet")

        assert Condition("glaze") in status_of(tree).matrix.conditions

    def test_filters_choose(self, tree: StudyTree) -> None:
        status = status_of(
            tree, protections=("mist",), countermeasures=("none",), selection=Selection(styles=("cubism",))
        )

        assert [(cell.adapter.condition, cell.adapter.artist) for cell in status.cells] == [
            (MIST, DORA),
            (MIST, CLARA),
        ]

    def test_the_pilot_is_that_of_the_original_art(self, tree: StudyTree) -> None:
        shutil.rmtree(original(tree, ANNA))

        assert status_of(tree, selection=Selection(pilot=True)).matrix.artists == (DORA, BORIS, CLARA)

    def test_all_names_that_match_nothing_are_refused_together(self, tree: StudyTree) -> None:
        with pytest.raises(UsageError) as raised:
            status_of(tree, protections=("mits",), selection=Selection(artists=("Ana_Berg",)))

        assert len(raised.value.problems) == 2
        assert "--protection mits" in raised.value.problems[0] and "'mist'" in raised.value.problems[0]
        assert "--artist Ana_Berg" in raised.value.problems[1]


class TestTrained:
    def test_a_study_is_done_when_all_that_has_images_is_complete(self, tree: StudyTree) -> None:
        put_all(tree, *WITH_IMAGES, artists=EVERYBODY)

        status = status_of(tree)

        assert states_of(status) == {State.COMPLETE, State.NO_DATA}
        assert status.exit_code == 0
        assert "--protection none" in cell_of(status, UNCOUNTERED).reason

    def test_a_cell_has_what_its_record_says(self, tree: StudyTree) -> None:
        put_adapter(
            tree,
            finished_at="2026-01-02T03:05:06+00:00",
            eval_loss={"start": 0.5, "end": 0.25},
            recipe_hash="a" * 64,
            hub={"owed": "x", "error": "the Hub is away"},
        )

        cell = read_cell(tree)

        assert (cell.steps, cell.seed, cell.seconds) == (CONFIG.max_train_steps, CONFIG.seed, 61.5)
        assert (cell.run.finished_at, cell.recipe_hash) == ("2026-01-02T03:05:06+00:00", "a" * 64)
        assert cell.run.content["eval_loss"] == {"start": 0.5, "end": 0.25}
        assert cell.owed == "the Hub is away"
        assert cell.log is None

    @pytest.mark.parametrize("damage", ["cut", "record", "unended"])
    def test_damaged_files_are_broken(self, tree: StudyTree, damage: str) -> None:
        folder = put_adapter(tree)
        if damage == "cut":
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
        elif damage == "record":
            (folder / "training_run.json").write_text("{")
        else:
            record = json.loads((folder / "training_run.json").read_text())
            (folder / "training_run.json").write_text(json.dumps({**record, "weights": None}))

        status = status_of(tree)

        assert cell_of(status).state is State.BROKEN
        assert str(folder) in cell_of(status).reason
        assert status.exit_code == 1

    def test_other_images_are_stale(self, tree: StudyTree) -> None:
        put_all(tree, *WITH_IMAGES, artists=EVERYBODY)
        image = next(iter(original(tree).iterdir()))
        image.write_bytes(image.read_bytes() + b" ")

        status = status_of(tree)

        assert (cell_of(status).state, cell_of(status).reason) == (
            State.STALE,
            f"other images: changed '{image.name}'",
        )
        assert status.exit_code == 3

    def test_an_image_that_is_gone_is_another_one(self, tree: StudyTree) -> None:
        put_adapter(tree)
        (original(tree) / "02_boat.png").unlink()
        (original(tree) / "02_boat.png").symlink_to("nowhere.png")

        assert (read_cell(tree).state, read_cell(tree).reason) == (State.STALE, "other images")

    def test_a_copied_adapter_is_stale(self, tree: StudyTree) -> None:
        put_all(tree, ORIGINAL, artists=(ANNA,))
        shutil.copytree(output_dir(tree), output_dir(tree, MIST))

        cell = read_cell(tree, MIST)

        assert cell.state is State.STALE
        assert f"its record is of {ORIGINAL}/{ANNA}" in cell.reason

    def test_an_adapter_without_a_record_is_complete(self, tree: StudyTree) -> None:
        (put_adapter(tree) / "training_run.json").unlink()

        assert (read_cell(tree).state, read_cell(tree).reason) == (State.COMPLETE, "made by another tool")

    def test_what_is_in_quarantine_does_not_count(self, tree: StudyTree) -> None:
        image = original(tree) / "02_boat.png"
        content = image.read_bytes()
        image.unlink()
        put_adapter(tree)
        image.write_bytes(content)
        assert read_cell(tree).state is State.STALE
        tree.quarantine.parent.mkdir(exist_ok=True)
        tree.quarantine.write_text(json.dumps({"images": {str(ANNA): {"02_boat": {}}}}))

        assert read_cell(tree).state is State.COMPLETE

    def test_what_was_held_out_is_not_missed(self, tree: StudyTree) -> None:
        held = held_out(["01_tree", "02_boat", "03_hills"], 1)
        records = [
            {"name": path.name, "size": path.stat().st_size, "stem": path.stem}
            for path in sorted(original(tree).iterdir())
            if path.stem not in held
        ]
        put_adapter(tree, images=records, options={"rank": CONFIG.rank, "hold_out": 1})

        assert read_cell(tree).state is State.COMPLETE

    def test_a_set_with_the_names_of_a_tool_pairs(self, tree: StudyTree) -> None:
        folder = tree.images_of(tree.protected_art / "mist", ANNA)
        for path in list(folder.iterdir()):
            path.rename(folder / f"50_noise_{path.name}")
        records: list[dict[str, Any]] = [
            {"name": path.name, "size": path.stat().st_size, "stem": path.stem.removeprefix("50_noise_")}
            for path in sorted(folder.iterdir())
        ]
        put_adapter(tree, MIST, images=records)

        assert read_cell(tree, MIST).state is State.COMPLETE

    def test_other_class_images_are_stale(self, tree: StudyTree, tmp_path: Path) -> None:
        classes = tmp_path / "classes"
        write_images(classes, ["one", "two"])
        put_adapter(
            tree,
            options={"rank": CONFIG.rank, "num_class_images": 2},
            paths={"class_data_dir": str(classes)},
            class_images={"listing_sha256": "0" * 64},
        )

        assert (read_cell(tree).state, read_cell(tree).reason) == (State.STALE, "other class images")


class TestRecipes:
    @pytest.fixture
    def mixed(self, tree: StudyTree) -> StudyTree:
        """Three adapters of one recipe, and that of Clara of another."""
        for artist in (DORA, ANNA, BORIS):
            put_adapter(tree, artist=artist)
        images = original(tree, CLARA)
        write_adapter(output_dir(tree, artist=CLARA), images, replace(CONFIG, learning_rate=0.5))
        return tree

    def test_another_recipe_than_most_is_stale(self, mixed: StudyTree) -> None:
        status = status_of(mixed)

        assert [cell.state for cell in status.with_state(State.COMPLETE, State.STALE)] == [
            *[State.COMPLETE] * 3,
            State.STALE,
        ]
        clara = cell_of(status, artist=CLARA)
        assert clara.reason == "another recipe than 3 of its series: learning_rate 0.0001 -> 0.5"
        assert [len(group.adapters) for group in status.recipes[PLAIN].groups] == [3, 1]

    def test_sisters_count_that_a_filter_leaves_out(self, mixed: StudyTree) -> None:
        status = status_of(mixed, selection=Selection(artists=(CLARA.name,)))

        assert cell_of(status, artist=CLARA).state is State.STALE

    def test_a_variant_has_a_recipe_of_its_own(self, mixed: StudyTree) -> None:
        shutil.rmtree(output_dir(mixed, artist=CLARA))
        adapter = AdapterId(PLAIN, ORIGINAL, CLARA, "seed-43")
        write_adapter(mixed.adapter_dir(adapter), original(mixed, CLARA), replace(CONFIG, seed=43))

        status = status_of(mixed, series=(PLAIN, adapter.series))

        assert cell_of(status, artist=CLARA, series=adapter.series).state is State.COMPLETE
        assert cell_of(status, artist=CLARA, series=adapter.series).seed == 43
        assert cell_of(status, artist=CLARA).state is State.WAITING
        assert not any(recipes.is_mixed for recipes in status.recipes.values())

    def test_records_of_two_versions_may_have_one_recipe(self, tree: StudyTree) -> None:
        put_adapter(tree)
        record = json.loads((put_adapter(tree, artist=BORIS) / "training_run.json").read_text())
        del record["recipe"]["options"]["adam_beta1"]  # an option that an older version did not have
        (output_dir(tree, artist=BORIS) / "training_run.json").write_text(json.dumps(record))

        status = status_of(tree)

        assert [len(group.adapters) for group in status.recipes[PLAIN].groups] == [2]

    def test_a_training_counts_as_well(self, mixed: StudyTree) -> None:
        recipe = {"options": {"rank": 99}, "base_model": BASE.identity(), "trainer": "mimicry"}
        folder = put_record(output_dir(mixed, MIST), status="running", recipe=recipe)

        with Claim.take_anew(folder):
            cell = read_cell(mixed, MIST)

        assert cell.state is State.RUNNING
        assert "another recipe than 3 of" in cell.reason


class TestUntrained:
    @pytest.mark.parametrize("state", [State.FAILED, State.INTERRUPTED, State.BLOCKED])
    def test_the_record_goes_before_the_tracker(self, tree: StudyTree, state: State) -> None:
        put_bookmark(tree, ORIGINAL, ANNA, status=State.COMPLETE)
        put_record(output_dir(tree), status=state, error="it burned", steps=7)

        cell = read_cell(tree)

        assert (cell.state, cell.reason, cell.steps) == (state, "it burned", 7)
        assert cell.log is not None
        assert (tree.data_root / cell.log).read_text() == "it began\n"

    @pytest.mark.parametrize("state", [State.FAILED, State.INTERRUPTED, State.BLOCKED])
    def test_without_a_record_the_tracker_tells(self, tree: StudyTree, state: State) -> None:
        put_bookmark(tree, ORIGINAL, ANNA, status=state, error="it burned")

        assert (read_cell(tree).state, read_cell(tree).reason) == (state, "it burned")

    def test_an_adapter_that_is_gone_is_waited_for(self, tree: StudyTree) -> None:
        put_bookmark(tree, ORIGINAL, ANNA, status=State.COMPLETE)

        assert read_cell(tree).state is State.WAITING

    @pytest.mark.parametrize("status", ["running", "complete", None])
    def test_a_training_that_did_not_end_is_interrupted(self, tree: StudyTree, status: str | None) -> None:
        put_record(output_dir(tree), status=status)

        assert read_cell(tree).state is State.INTERRUPTED
        assert "takes it up" in read_cell(tree).reason

    def test_a_live_claim_is_at_work(self, tree: StudyTree) -> None:
        folder = put_record(output_dir(tree), status="running", options={"max_train_steps": 60})
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n{"st')

        with Claim.take_anew(folder):
            cell = read_cell(tree)

        assert cell.state is State.RUNNING
        assert cell.holder is not None
        assert cell.holder.host == this_host().partition(" ")[0]
        assert cell.holder.since[:2] == "20"
        assert (cell.steps, cell.step_count) == (2, 60)

    def test_a_dead_claim_is_not(self, tree: StudyTree) -> None:
        folder = put_record(output_dir(tree), status="running")
        holder = {"pid": 2**22 + 1, "started": "long ago"}
        content = {"token": "x", "host": this_host(), "since": "2026", "holders": [holder]}
        (folder / CLAIM).write_text(json.dumps(content))

        assert (read_cell(tree).state, read_cell(tree).holder) == (State.INTERRUPTED, None)

    def test_a_complete_adapter_that_is_worked_on_stays_complete(self, tree: StudyTree) -> None:
        with Claim.take_anew(put_adapter(tree)):
            cell = read_cell(tree)

        assert cell.state is State.COMPLETE
        assert cell.holder is not None

    def test_a_checkpoint_waits(self, tree: StudyTree) -> None:
        folder = put_record(output_dir(tree), status="interrupted", options={"max_train_steps": 60})
        put_checkpoint(folder, 20)
        put_checkpoint(folder, 40)
        (folder / "checkpoint-40" / "state.safetensors").unlink()

        cell = read_cell(tree)

        assert (cell.state, cell.checkpoint, cell.step_count) == (State.INTERRUPTED, 20, 60)

    def test_a_checkpoint_alone_is_an_interrupted_training(self, tree: StudyTree) -> None:
        put_checkpoint(output_dir(tree), 20)

        assert (read_cell(tree).state, read_cell(tree).checkpoint) == (State.INTERRUPTED, 20)

    def test_an_artist_without_images_has_no_data(self, tree: StudyTree) -> None:
        folder = tree.images_of(tree.protected_art / "mist", ANNA)
        shutil.rmtree(folder)
        put_bookmark(tree, MIST, ANNA, status=State.BLOCKED, error="there is no image")

        cell = read_cell(tree, MIST)

        assert cell.state is State.NO_DATA
        assert str(folder) in cell.reason

    def test_images_that_cannot_be_trained_on_are_blocked(self, tree: StudyTree) -> None:
        shutil.copyfile(original(tree) / "02_boat.png", original(tree) / "02_boat.jpg")

        assert read_cell(tree).state is State.BLOCKED
        assert "02_boat" in read_cell(tree).reason

    def test_an_unpaired_set_is_blocked(self, tree: StudyTree) -> None:
        (tree.images_of(tree.protected_art / "mist", ANNA) / "02_boat.png").unlink()

        cell = read_cell(tree, MIST)

        assert cell.state is State.BLOCKED
        assert "unpaired: lacks '02_boat'" in cell.reason and "--allow-unpaired" in cell.reason

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
    def test_a_folder_that_cannot_be_listed_is_broken(self, tree: StudyTree) -> None:
        folder = put_adapter(tree)
        folder.chmod(0)
        try:
            assert read_cell(tree).state is State.BROKEN
        finally:
            folder.chmod(0o755)


def test_a_study_that_was_copied_stays_as_it_is(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree, *WITH_IMAGES, artists=EVERYBODY)
    put_record(output_dir(tree, MIST, ANNA), status="failed")
    (output_dir(tree, MIST, ANNA) / WEIGHTS).unlink()
    shutil.copytree(tree.data_root, tmp_path / "copy")

    copied = status_of(StudyTree(tmp_path / "copy"))

    assert copied.counts == {State.COMPLETE: 11, State.FAILED: 1, State.NO_DATA: 4}


def test_a_lost_tracker_changes_nothing_that_lies_on_disk(tree: StudyTree) -> None:
    put_all(tree, ORIGINAL, artists=(ANNA, BORIS))
    put_record(output_dir(tree, artist=CLARA), status="failed", error="it burned")
    put_bookmark(tree, ORIGINAL, ANNA, status=State.COMPLETE)
    before = status_of(tree)
    tree.tracker.unlink()

    assert status_of(tree).cells == before.cells
    assert {State.COMPLETE, State.FAILED, State.WAITING} < states_of(before)


def test_reading_writes_nothing(tree: StudyTree) -> None:
    put_all(tree, ORIGINAL, artists=(ANNA,))
    before = sorted(tree.data_root.rglob("*"))

    status_of(tree)

    assert sorted(tree.data_root.rglob("*")) == before


class TestVariants:
    @pytest.fixture
    def several(self, tree: StudyTree) -> StudyTree:
        for variant in ("seed-43", "big", "big-seed-43"):
            tree.adapter_dir(AdapterId(PLAIN, MIST, CLARA, variant)).mkdir(parents=True)
        return tree

    @pytest.mark.parametrize(
        ("names", "variants"),
        [
            ((), [None, "big", "big-seed-43", "seed-43"]),
            (("all",), [None, "big", "big-seed-43", "seed-43"]),
            (("none",), [None]),
            (("big",), ["big", "big-seed-43"]),
            (("big-seed-43", "none"), [None, "big-seed-43"]),
        ],
    )
    def test_a_variant_stands_for_its_replicates_too(
        self, several: StudyTree, names: tuple[str, ...], variants: list[str | None]
    ) -> None:
        found = series_meant(several, PLAIN, names)
        assert found == [series_name(PLAIN, variant) for variant in variants]

    def test_unknown_ones_are_refused_at_once(self, several: StudyTree) -> None:
        with pytest.raises(UsageError) as caught:
            series_meant(several, PLAIN, ("bigg", "seed-44", "big"))
        assert len(caught.value.problems) == 2
        assert "did you mean 'big'" in caught.value.problems[0]


def test_images_with_the_names_of_a_tool_are_those_of_the_record(tree: StudyTree) -> None:
    folder = tree.images_of(tree.protected_art / "mist", ANNA)
    for path in list(folder.iterdir()):
        path.rename(folder / f"50_noise_{path.name}")
    records = [
        {"name": path.name, "size": path.stat().st_size, "stem": path.stem.removeprefix("50_noise_")}
        for path in sorted(folder.iterdir())
    ]
    put_adapter(tree, MIST, images=records)
    assert cell_of(status_of(tree), MIST).other_images == ""
    put_adapter(tree, MIST, images=[{**record, "stem": "another"} for record in records])
    assert cell_of(status_of(tree), MIST).other_images == "paired with other originals"
