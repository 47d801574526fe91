"""Plans: who is trained on what, told from the tree without touching it."""

import shutil
from pathlib import Path

import pytest

from mimicry.common.errors import UsageError
from mimicry.study.images import ImageFolder
from mimicry.study.states import State
from mimicry.study.tree import Artist, Condition, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from tests.hostile_names import over_hostile_names
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    COUNTERED,
    DORA,
    EVERYBODY,
    GLAZE_COUNTERED,
    MIST,
    ORIGINAL,
    STEMS,
    listing,
    original,
    plan_of,
    put_adapter,
    target_of,
    write_images,
)

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
        assert len(plan.of(State.PENDING)) == 4


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

    assert target.state is State.PENDING
    assert said in target.warnings
    # The trainer finds out the same, and records it.
    assert target.inputs.pair_with_dir == original(tree, stranger)


@pytest.mark.parametrize(("least", "state"), [(3, State.PENDING), (4, State.BLOCKED)])
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

    assert lenient.state is State.PENDING
    assert f"unpaired: {said}" in lenient.warnings
    assert target_of(strict).state is State.BLOCKED
    assert target_of(strict).reason.startswith(f"unpaired: {said}; ")
    assert "--allow-unpaired" in target_of(strict).reason
    assert len(strict.of(State.PENDING)) == 3


def test_pairs_are_told_by_stem_whatever_suffix_and_accents(tree: StudyTree) -> None:
    folder = tree.images_of(tree.protected_art / "mist", ANNA)
    (folder / "01_tree.png").rename(folder / "Andre\u0301.PNG")
    (original(tree) / "01_tree.png").rename(original(tree) / "Andr\u00e9.jpeg")

    target = target_of(plan_of(tree, MIST))

    assert target.state is State.PENDING
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
    assert target.state is State.PENDING
    assert target.folder.path.name == hostile_name
    assert target.images.stems == list(STEMS)

    put_adapter(tree, artist=artist)
    assert target_of(plan_of(tree, full=True), artist).state is State.COMPLETE
    assert ImageFolder.read(target.folder.path).names == ()
