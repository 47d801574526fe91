"""Plans with paintings held out: the same in every condition, and refused where too few would stay."""

import json
import shutil
from pathlib import Path

import pytest

from mimicry.study.captions import image_records
from mimicry.study.cells import left_out
from mimicry.study.images import ImageFolder
from mimicry.study.pairing import held_out
from mimicry.study.tree import Artist, State, StudyTree
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.image_check import check_images, quarantine_bad_images, recall_images
from mimicry.tuning.status.tables import plan_json, plan_table
from tests.small_study import (
    ANNA,
    COUNTERED,
    MIST,
    ORIGINAL,
    STEMS,
    asked_for,
    judged,
    original,
    plan_of,
    put_adapter,
    target_of,
    write_images,
)
from tests.tuning.status.study_states import cell_of, status_of

HELD = held_out(STEMS, 1)
KEPT = [stem for stem in STEMS if stem not in HELD]


def config(count: int = 1, **options: object) -> TuningConfig:
    return TuningConfig(rank=4, hold_out=count, **options)  # type: ignore[arg-type]


def test_every_condition_and_seed_leaves_out_the_same(tree: StudyTree) -> None:
    for condition in (ORIGINAL, MIST, COUNTERED):
        for seed in (42, 43):
            target = target_of(plan_of(tree, condition, config=config(seed=seed)))
            assert target.state is State.WAITING
            assert target.images.stems == KEPT
            assert target.held_out == HELD
            # The trainer is told how many, and finds the same.
            assert target.left_out == ()
            assert "--hold-out=1" in target.command
            assert target.inputs.read_images(1).names == target.images.names
            evaluated = target.inputs.read_eval_images(1)
            assert evaluated is not None
            assert (evaluated.path, evaluated.stems) == (original(tree), list(HELD))


def test_epochs_are_those_of_the_images_that_stay(tree: StudyTree) -> None:
    target = target_of(plan_of(tree, config=config(num_train_epochs=8)))
    assert target.step_count == 8 * 2 // 4


def test_quarantine_comes_first(tree: StudyTree) -> None:
    (original(tree) / f"{HELD[0]}.png").write_bytes(b"torn")
    plan = plan_of(tree, MIST, config=config())
    assert quarantine_bad_images(plan, print)
    assert left_out(tree) == {str(ANNA): frozenset(HELD)}

    target = target_of(plan_of(tree, MIST, config=config()))

    assert target.left_out == HELD
    assert target.held_out == held_out(KEPT, 1)
    assert len(target.images.names) == 1


def test_a_bad_copy_of_a_held_out_painting_is_nobodys_concern(tree: StudyTree) -> None:
    (tree.images_of(tree.protected_art / "mist", ANNA) / f"{HELD[0]}.png").write_bytes(b"torn")
    plan = plan_of(tree, MIST, config=config())
    assert not quarantine_bad_images(plan, print)
    assert target_of(check_images(plan)).state is State.WAITING


def test_a_held_out_painting_that_cannot_be_read_blocks_every_condition(tree: StudyTree) -> None:
    (original(tree) / f"{HELD[0]}.png").write_bytes(b"torn")
    for condition in (ORIGINAL, MIST):
        target = target_of(check_images(plan_of(tree, condition, config=config())))
        assert target.state is State.BLOCKED
        assert f"{HELD[0]}.png" in target.reason


def test_an_artist_without_originals_is_blocked(tree: StudyTree) -> None:
    stranger = Artist("historical", "baroque", "Aaron_Aal")
    write_images(tree.images_of(tree.protected_art / "mist", stranger))
    target = target_of(plan_of(tree, MIST, config=config(), allow_unpaired=True), stranger)
    assert target.state is State.BLOCKED
    assert f"there is no image in {original(tree, stranger)}" in target.reason


@pytest.mark.parametrize(
    ("count", "least", "reason"),
    [
        (2, 1, ""),
        (3, 1, "--hold-out 3 leaves no image to train on, of 3 in"),
        (4, 1, "--hold-out 4 leaves no image to train on, of 3 in"),
        (1, 2, ""),
        (
            1,
            3,
            "2 images to train on, without those of --hold-out 1, where --min-samples-per-artist asks for 3",
        ),
    ],
)
def test_too_few_would_stay(tree: StudyTree, count: int, least: int, reason: str) -> None:
    target = target_of(plan_of(tree, config=config(count), min_samples_per_artist=least))
    assert target.state is (State.BLOCKED if reason else State.WAITING)
    assert target.reason.startswith(reason)


def test_a_pilot_has_enough_images_to_train_on(tree: StudyTree) -> None:
    (original(tree) / f"{STEMS[0]}.png").unlink()
    artists = [target.artist for target in plan_of(tree, pilot=True, config=config(2)).targets]
    assert ANNA not in artists
    assert artists == [target.artist for target in plan_of(tree, MIST, pilot=True, config=config(2)).targets]


def test_the_plan_tells_how_many_and_which(tree: StudyTree) -> None:
    plan = plan_of(tree, config=config())
    value = json.loads(json.dumps(plan_json(plan)))

    assert "2 + 1 held out" in plan_table(plan)
    assert "in-sample" not in plan_table(plan)
    assert {target["evaluation"] for target in value["cells"]} == {"held-out"}
    assert {tuple(target["held_out"]) for target in value["cells"]} == {HELD}
    # As for any artist of three paintings.
    assert "3 images; the defaults are meant for 20" in target_of(plan).warnings


def test_without_it_the_plan_says_in_sample_where_it_evaluates(tree: StudyTree) -> None:
    assert "evaluation loss: in-sample" in plan_table(plan_of(tree))
    assert plan_json(plan_of(tree))["cells"][0]["evaluation"] == "in-sample"
    without = plan_of(tree, config=TuningConfig(rank=4, eval_timesteps=0))
    assert "in-sample" not in plan_table(without)
    assert plan_json(without)["cells"][0]["evaluation"] is None


def test_captions_of_held_out_paintings_are_not_called_unused(tree: StudyTree) -> None:
    for stem in STEMS:
        (original(tree) / f"{stem}.txt").write_text(f"{stem} in the style of sks")
    target = target_of(plan_of(tree, config=config(captions=True)))
    assert target.state is State.WAITING
    assert not any("not used" in warning for warning in target.warnings)


class TestAdaptersOnDisk:
    def put(self, tree: StudyTree, count: int) -> Path:
        kept = ImageFolder.read(tree.images_of(tree.protected_art / "mist", ANNA)).without(
            held_out(STEMS, count)
        )
        return put_adapter(tree, MIST, config=config(count), images=kept.records())

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_one_is_complete_by_its_own_record(self, tree: StudyTree, count: int) -> None:
        folder = self.put(tree, count)
        plan = plan_of(tree, MIST, config=config(count), asked=asked_for(config(count)), full=True)
        assert judged(target_of(plan)) == (State.COMPLETE, State.COMPLETE)
        cell = cell_of(status_of(tree, full=True), MIST)
        assert (cell.state, cell.other_images) == (State.COMPLETE, "")
        assert folder == target_of(plan).folder.path

    def test_names_that_a_tool_has_changed_are_known(self, tree: StudyTree) -> None:
        folder = tree.images_of(tree.protected_art / "mist", ANNA)
        for path in list(folder.iterdir()):
            path.rename(path.with_name(f"50_noise_{path.name}"))
        target = target_of(plan_of(tree, MIST, config=config()))
        put_adapter(tree, MIST, config=config(), images=image_records(target.images, None))
        cell = cell_of(status_of(tree, full=True), MIST)
        assert (cell.state, cell.other_images) == (State.COMPLETE, "")

    def test_another_number_is_another_recipe(self, tree: StudyTree) -> None:
        self.put(tree, 1)
        for asked in (0, 2):
            plan = plan_of(tree, MIST, config=config(asked), asked=asked_for(config(asked)))
            assert target_of(plan).state is State.STALE
            assert f"hold_out 1 -> {asked}" in target_of(plan).reason

    def test_another_choice_is_found_by_verify(self, tree: StudyTree) -> None:
        self.put(tree, 1)
        # A painting that was added later, and is held out in place of the first.
        added = next(
            f"{number}" for number in range(1000) if f"{number}" in held_out([*STEMS, f"{number}"], 1)
        )
        for folder in (original(tree), tree.images_of(tree.protected_art / "mist", ANNA)):
            write_images(folder, [added], salt=str(folder))
        assert cell_of(status_of(tree, full=True), MIST).state is State.STALE


def test_a_countermeasure_that_did_nothing_is_found_all_the_same(tree: StudyTree) -> None:
    countered = tree.images_of(tree.robust_samples / "noisy_upscaling" / "mist", ANNA)
    shutil.rmtree(countered)
    shutil.copytree(tree.images_of(tree.protected_art / "mist", ANNA), countered)
    target = target_of(check_images(plan_of(tree, COUNTERED, config=config())))
    assert target.state is State.BLOCKED
    assert "all 2 images are those that were to be countered" in target.reason


def test_doses_are_those_of_what_is_trained_on(tree: StudyTree) -> None:
    checked = target_of(check_images(plan_of(tree, MIST, config=config())))
    assert list(checked.examined) == [f"{stem}.png" for stem in KEPT]
    recalled = target_of(recall_images(plan_of(tree, MIST, config=config())))
    assert recalled.examined == checked.examined
