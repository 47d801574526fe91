"""Plans: who is trained on what, told from the tree without touching it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.common.files import sha256_file
from mimicry.common.processes import Interrupted
from mimicry.study.images import ImageFolder
from mimicry.study.tree import Artist, Condition, State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.checkpoint_facts import PARTS, SCHEMA
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.target import Target
from tests.hostile_names import over_hostile_names
from tests.small_study import (
    ANNA,
    BASE,
    BORIS,
    CLARA,
    CONFIG,
    COUNTERED,
    DORA,
    EVERYBODY,
    GLAZE_COUNTERED,
    MIST,
    ORIGINAL,
    STEMS,
    asked_for,
    bookmarks_in,
    listing,
    original,
    output_dir,
    plan_of,
    put_adapter,
    target_of,
    write_adapter,
    write_images,
)
from tests.tuning.staged_batch import Ending, OnStep, be_stopped, make_batch, outcomes, output, statuses

# What is trained on what


@pytest.mark.parametrize(
    ("condition", "source", "key"),
    [
        (ORIGINAL, "original_art", "hf_diffusers/none/none"),
        (MIST, "protected_art/mist", "hf_diffusers/mist/none"),
        (COUNTERED, "robust_samples/noisy_upscaling/mist", "hf_diffusers/mist/noisy_upscaling"),
    ],
    ids=str,
)
def test_a_condition_reads_from_its_own_tree_and_writes_to_its_own(
    tree: StudyTree, condition: Condition, source: str, key: str
) -> None:
    plan = plan_of(tree, condition)

    assert [target.artist for target in plan.targets] == list(EVERYBODY)
    assert {target.source for target in plan.targets} == {tree.data_root / source}
    assert plan.counts() == {
        "train": 4,
        "complete": 0,
        "stale": 0,
        "claimed": 0,
        "queued": 0,
        "blocked": 0,
        "no data": 0,
    }
    target = target_of(plan)
    assert target.images.path == tree.data_root / source / "historical/baroque/Anna_Berg"
    assert target.images.stems == list(STEMS)
    assert (
        target.folder.path
        == tree.data_root / f"models/lora/hf_diffusers/{condition}/historical/baroque/Anna_Berg"
    )
    assert target.adapter.key == f"{key}/historical/baroque/Anna_Berg"


def test_samples_that_do_not_name_the_protection_serve_any(shared_samples: StudyTree) -> None:
    for condition in (COUNTERED, GLAZE_COUNTERED):
        plan = plan_of(shared_samples, condition)
        assert target_of(plan).source == shared_samples.robust_samples / "noisy_upscaling"
        assert not shared_samples.source(condition).names_protection
        assert len(plan.of(State.WAITING)) == 4


def test_a_protection_that_the_samples_do_not_name_is_refused(tree: StudyTree) -> None:
    with pytest.raises(UsageError, match=r"has no folder of that name; .*mist"):
        plan_of(tree, GLAZE_COUNTERED)


def test_a_plan_changes_nothing(shared_samples: StudyTree) -> None:
    put_adapter(shared_samples)
    (put_adapter(shared_samples, artist=BORIS) / WEIGHTS).write_bytes(b"torn")
    put_adapter(shared_samples, GLAZE_COUNTERED)
    before = listing(shared_samples.data_root)

    for condition in (ORIGINAL, MIST, COUNTERED, GLAZE_COUNTERED):
        for full in (False, True):
            for overwrite in (False, True):
                plan_of(shared_samples, condition, full=full, overwrite=overwrite)

    assert listing(shared_samples.data_root) == before


# Who is blocked, and who is warned


def test_an_artist_who_lacks_protected_images_is_blocked_and_stays_the_pilot(tree: StudyTree) -> None:
    shutil.rmtree(tree.images_of(tree.protected_art / "mist", ANNA))

    for pilot in (False, True):
        plan = plan_of(tree, MIST, pilot=pilot)
        target = target_of(plan)
        assert target.state is State.BLOCKED
        assert f"there is no image in {tree.protected_art / 'mist' / str(ANNA)}" in target.reason
        assert plan.counts()["blocked"] == 1
    assert [target.artist for target in plan.targets] == [DORA, ANNA, CLARA]


def test_pilots_are_the_same_in_every_condition_whatever_else_is_there(tree: StudyTree) -> None:
    first_but_not_original = Artist("historical", "baroque", "Aaron_Aal")
    write_images(tree.images_of(tree.protected_art / "mist", first_but_not_original))
    shutil.rmtree(tree.images_of(tree.original_art, CLARA))
    write_images(tree.images_of(tree.original_art, CLARA), ["only_one"])

    for condition in (ORIGINAL, MIST, COUNTERED):
        plan = plan_of(tree, condition, pilot=True, min_samples_per_artist=2)
        assert [target.artist for target in plan.targets] == [DORA, ANNA]


def test_an_artist_without_originals_is_blocked_or_marked(tree: StudyTree) -> None:
    stranger = Artist("historical", "baroque", "Aaron_Aal")
    write_images(tree.images_of(tree.protected_art / "mist", stranger))
    said = "unpaired: has '01_tree', '02_boat', '03_hills' that original_art has not"

    assert target_of(plan_of(tree, MIST), stranger).state is State.BLOCKED
    target = target_of(plan_of(tree, MIST, allow_unpaired=True), stranger)

    assert target.state is State.WAITING
    assert said in target.warnings
    # The trainer finds out the same, and records it.
    assert target.inputs.pair_with_dir == original(tree, stranger)


@pytest.mark.parametrize(("least", "state"), [(3, State.WAITING), (4, State.BLOCKED)])
def test_min_samples_per_artist_is_the_least_number_allowed(
    tree: StudyTree, least: int, state: State
) -> None:
    target = target_of(plan_of(tree, min_samples_per_artist=least))

    assert target.state is state
    assert ("3 images where --min-samples-per-artist asks for 4" in target.reason) is (least == 4)


def test_two_files_of_one_stem_block_the_artist(tree: StudyTree) -> None:
    (original(tree) / "02_boat.JPG").write_bytes(b"")
    (original(tree, BORIS) / ".02_boat.jpg").write_bytes(b"hidden")
    (original(tree, CLARA) / "02_boat.txt").write_bytes(b"no image")

    plan = plan_of(tree)

    assert [target.artist for target in plan.of(State.BLOCKED)] == [ANNA]
    assert "share the stem '02_boat'" in target_of(plan).reason


def test_unpaired_images_block_and_warn_with_allow_unpaired(tree: StudyTree) -> None:
    folder = tree.images_of(tree.protected_art / "mist", ANNA)
    (folder / "01_tree.png").rename(folder / "04_new.png")
    said = "lacks '01_tree' of original_art and has '04_new' that original_art has not"

    lenient = target_of(plan_of(tree, MIST, allow_unpaired=True))
    strict = plan_of(tree, MIST)

    assert lenient.state is State.WAITING
    assert f"unpaired: {said}" in lenient.warnings
    assert target_of(strict).state is State.BLOCKED
    assert target_of(strict).reason.startswith(f"unpaired: {said}; ")
    assert "--allow-unpaired" in target_of(strict).reason
    assert len(strict.of(State.WAITING)) == 3


def test_pairs_are_told_by_stem_whatever_suffix_and_accents(tree: StudyTree) -> None:
    folder = tree.images_of(tree.protected_art / "mist", ANNA)
    (folder / "01_tree.png").rename(folder / "Andre\u0301.PNG")
    (original(tree) / "01_tree.png").rename(original(tree) / "Andr\u00e9.jpeg")

    target = target_of(plan_of(tree, MIST))

    assert target.state is State.WAITING
    assert not any("unpaired" in warning for warning in target.warnings)


@pytest.mark.parametrize(("count", "warned"), [(19, True), (20, False)])
def test_fewer_images_than_the_defaults_are_meant_for_warn(tree: StudyTree, count: int, warned: bool) -> None:
    shutil.rmtree(original(tree))
    write_images(original(tree), [f"{number:02}" for number in range(count)])

    warnings = target_of(plan_of(tree)).warnings

    assert warnings == ((f"{count} images; the defaults are meant for 20",) if warned else ())


@over_hostile_names
def test_hostile_names_are_planned_as_they_are(hostile_name: str, tmp_path: Path) -> None:
    tree, artist = StudyTree(tmp_path), Artist("historical", "baroque", hostile_name)
    write_images(tree.images_of(tree.original_art, artist))
    write_images(tree.images_of(tree.original_art, BORIS))
    if hostile_name.startswith("."):
        assert [target.artist for target in plan_of(tree).targets] == [BORIS]
        return

    target = target_of(plan_of(tree, artists=(hostile_name,)), artist)
    assert target.state is State.WAITING
    assert target.folder.path.name == hostile_name
    assert target.images.stems == list(STEMS)

    put_adapter(tree, artist=artist)
    assert target_of(plan_of(tree, full=True), artist).state is State.COMPLETE
    assert ImageFolder.read(target.folder.path).names == ()


def put_checkpoint(tree: StudyTree, step: int, config: TuningConfig = CONFIG, **facts: Any) -> Path:
    """Write a checkpoint of Anna's training; its tensors are no tensors, which a plan does not read."""
    folder = output_dir(tree) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in PARTS:
        (folder / name).write_text(name)
    content = {
        "schema": SCHEMA,
        "step": step,
        "recipe": recipe(config, BASE.identity(), OWN_TRAINER),
        "images": ImageFolder.read(original(tree)).records(),
        "class_images": None,
        "sha256": {name: sha256_file(folder / name) for name in PARTS},
    }
    (folder / "checkpoint.json").write_text(json.dumps(content | facts))
    return folder


def target(tree: StudyTree, **asked: Any) -> Target:
    return target_of(plan_of(tree, **asked))


def test_the_step_that_it_goes_on_from(tree: StudyTree) -> None:
    put_checkpoint(tree, 27)
    put_checkpoint(tree, 9)

    for full in (False, True):
        assert target(tree, full=full).reason == "resumes at step 27 of 500"


def test_a_checkpoint_of_another_recipe_is_dropped_and_an_older_one_used(tree: StudyTree) -> None:
    put_checkpoint(tree, 300, replace(CONFIG, learning_rate=3e-4))
    put_checkpoint(tree, 27)

    assert target(tree).reason == (
        "resumes at step 27 of 500; drops checkpoint-300: it belongs to another run: "
        "learning_rate 0.0003 -> 0.0001"
    )


def test_other_images_drop_it_and_are_named(tree: StudyTree) -> None:
    put_checkpoint(tree, 27)
    write_images(original(tree), ("04_new",))

    assert target(tree).reason == (
        "drops checkpoint-27: it belongs to another run: other images: new '04_new.png'"
    )


def test_a_flipped_byte_is_found_in_full_and_a_missing_file_at_once(tree: StudyTree) -> None:
    folder = put_checkpoint(tree, 27)
    (folder / PARTS[0]).write_text(PARTS[0][::-1])

    assert target(tree).reason.startswith("resumes at step 27")
    assert target(tree, full=True).reason == (f"drops checkpoint-27: it is not whole: {PARTS[0]} is damaged")
    (folder / PARTS[0]).unlink()
    assert target(tree).reason == "drops checkpoint-27: it is not whole: No such file or directory"


def test_a_new_beginning_drops_all(tree: StudyTree) -> None:
    put_checkpoint(tree, 27)

    anew = target(tree, config=replace(CONFIG, resume_from_checkpoint="none"))

    assert anew.reason == "drops checkpoint-27: a new beginning was asked for"


def test_one_that_was_asked_for_by_name(tree: StudyTree) -> None:
    put_checkpoint(tree, 9)
    put_checkpoint(tree, 27)

    found = target(tree, config=replace(CONFIG, resume_from_checkpoint="checkpoint-9"))

    assert found.reason == "resumes at step 9 of 500; drops checkpoint-27: step 9 was asked for"


def test_one_that_was_asked_for_and_does_not_fit_blocks_the_artist(tree: StudyTree) -> None:
    put_checkpoint(tree, 9)

    found = target(
        tree, asked=asked_for(seed=7), config=replace(CONFIG, resume_from_checkpoint="checkpoint-9")
    )

    assert found.state is State.BLOCKED
    assert "checkpoint-9: it belongs to another run: seed 42 -> 7" in found.reason


def test_beside_an_adapter_that_is_trained_again_it_is_not_used(tree: StudyTree) -> None:
    put_adapter(tree)
    put_checkpoint(tree, 27)

    assert target(tree, overwrite=True).reason == "--overwrite sets its adapter aside"


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 0}', '{"schema": 1, "step": "x"}'])
def test_one_that_cannot_be_read_is_dropped(content: str, tree: StudyTree) -> None:
    (put_checkpoint(tree, 27) / "checkpoint.json").write_text(content)

    assert target(tree).reason.startswith("drops checkpoint-27: it ")


def at(finished_at: str) -> Ending:
    """Complete, and say that it ended at another time than other trainings."""

    def ending(target: Target, on_step: OnStep) -> int:
        write_adapter(target.folder.path, target.images.path, finished_at=finished_at)
        return 0

    return ending


def overwrite_plan(tree: StudyTree, **asked: Any) -> Plan:
    return plan_of(tree, bookmarks=open_tracker(tree).bookmarks(), overwrite=True, **asked)


class TestStoppedOverwrite:
    """Dora was trained again, Anna was being trained, Boris and Clara are as they were."""

    @pytest.fixture
    def stopped(self, tree: StudyTree) -> StudyTree:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        batch, _ = make_batch(overwrite_plan(tree), {DORA: at("later"), ANNA: be_stopped})
        with pytest.raises(Interrupted):
            batch.run()
        return tree

    def test_the_same_command_trains_the_others(self, stopped: StudyTree) -> None:
        plan = overwrite_plan(stopped)

        assert [target.state for target in plan.targets] == [State.COMPLETE, *[State.WAITING] * 3]
        assert "trained again by this --overwrite" in target_of(plan, DORA).reason
        batch, executor = make_batch(plan, dict.fromkeys(EVERYBODY, at("later")))
        batch.run()
        assert executor.trained == [ANNA, BORIS, CLARA]
        assert statuses(stopped) == ["complete"] * 4

    def test_once_it_is_finished_another_one_begins(self, stopped: StudyTree) -> None:
        make_batch(overwrite_plan(stopped), dict.fromkeys(EVERYBODY, at("later")))[0].run()

        batch, executor = make_batch(overwrite_plan(stopped), dict.fromkeys(EVERYBODY, at("much later")))
        batch.run()

        assert executor.trained == list(EVERYBODY)

    def test_what_is_done_is_trained_again_for_another_recipe(self, stopped: StudyTree) -> None:
        plan = overwrite_plan(stopped, asked=asked_for(seed=7))

        assert [target.state for target in plan.targets] == [State.WAITING] * 4

    def test_an_artist_that_is_done_is_trained_again_alone(self, stopped: StudyTree) -> None:
        plan = overwrite_plan(stopped, artists=("Dora_Eik",))

        assert target_of(plan, DORA).state is State.WAITING

    def test_without_overwrite_the_artist_that_was_stopped_is_trained(self, stopped: StudyTree) -> None:
        plan = plan_of(stopped, bookmarks=open_tracker(stopped).bookmarks())

        assert [(target.state, target.reason) for target in plan.targets] == [
            (State.COMPLETE, ""),
            (State.WAITING, "its old adapter was set aside by --overwrite"),
            *[(State.COMPLETE, "")] * 2,
        ]
        batch, executor = make_batch(plan)
        batch.run()
        assert executor.trained == [ANNA]
        assert all("note" not in mark for mark in bookmarks_in(stopped).values())

    def test_one_that_was_killed_before_it_could_record_its_end(self, tree: StudyTree) -> None:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        batch, _ = make_batch(overwrite_plan(tree), {DORA: at("later"), ANNA: at("later"), BORIS: be_stopped})
        with pytest.raises(Interrupted):
            batch.run()
        # As if the call had been killed between the end of Anna's training and its record in the tracker.
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="waiting")

        plan = overwrite_plan(tree)

        assert [target.state for target in plan.targets] == [State.COMPLETE] * 2 + [State.WAITING] * 2

    def test_a_lost_tracker_trains_all_again(self, stopped: StudyTree) -> None:
        stopped.tracker.unlink()

        assert [target.state for target in overwrite_plan(stopped).targets] == [State.WAITING] * 4

    def test_one_that_another_call_trains_before_ours_has_marked_it_is_done(self, tree: StudyTree) -> None:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        ours = overwrite_plan(tree)
        make_batch(overwrite_plan(tree, artists=("Dora_Eik",)), {DORA: at("later")})[0].run()
        batch, _ = make_batch(ours, {ANNA: be_stopped})
        with pytest.raises(Interrupted):
            batch.run()

        assert target_of(overwrite_plan(tree), DORA).state is State.COMPLETE

    def test_another_call_on_it_trains_each_once(self, tree: StudyTree) -> None:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        theirs, ours = overwrite_plan(tree), overwrite_plan(tree)
        make_batch(theirs, dict.fromkeys(EVERYBODY, at("later")))[0].run()

        batch, executor = make_batch(ours)
        batch.run()

        assert executor.trained == []
        assert outcomes(batch) == ["skipped"] * 4


def test_stale_adapters_are_trained_again_in_their_turn(tree: StudyTree) -> None:
    put_adapter(tree, artist=ANNA)
    put_adapter(tree, artist=BORIS, config=replace(CONFIG, seed=7))
    plan = plan_of(tree, retrain_stale=True)
    assert "seed 7 -> 42" in target_of(plan, BORIS).reason
    batch, executor = make_batch(plan, {CLARA: be_stopped})
    with pytest.raises(Interrupted):
        batch.run()

    again = plan_of(tree, bookmarks=open_tracker(tree).bookmarks(), retrain_stale=True)

    assert executor.trained == [DORA, BORIS, CLARA]
    assert len(list((output(tree, BORIS) / "set_aside").glob(f"*-stale/{WEIGHTS}"))) == 1
    assert [target.state for target in again.targets] == [State.COMPLETE] * 3 + [State.WAITING]
