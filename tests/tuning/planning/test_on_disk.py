"""Which adapters and images a command means that trains nothing: told from the tree."""

import shutil
from pathlib import Path

import pytest

from mimicry.common.errors import UsageError
from mimicry.study.selection import Selection
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters import TrainingRun
from mimicry.tuning.planning.on_disk import AdapterFilter, OwnImages
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
    output_dir,
    write_images,
)

STACK = "hf_diffusers"


@pytest.fixture
def tree(tree: StudyTree) -> StudyTree:
    """A study with a few folders of adapters; nobody looks into them here."""
    for condition, artist in ((COUNTERED, ANNA), (ORIGINAL, ANNA), (MIST, ANNA), (ORIGINAL, CLARA)):
        output_dir(tree, condition, artist).mkdir(parents=True)
    output_dir(tree, ORIGINAL, DORA, stack="other").mkdir(parents=True)
    return tree


def chosen(tree: StudyTree, stack: str = STACK, **names: object) -> list[tuple[Condition, Artist]]:
    adapters = AdapterFilter(**names).choose(tree, stack)  # type: ignore[arg-type]
    assert all(adapter == AdapterId(stack, adapter.condition, adapter.artist) for adapter in adapters)
    return [(adapter.condition, adapter.artist) for adapter in adapters]


class TestChoose:
    def test_all_by_artist_and_condition(self, tree: StudyTree) -> None:
        assert chosen(tree) == [(ORIGINAL, ANNA), (MIST, ANNA), (COUNTERED, ANNA), (ORIGINAL, CLARA)]
        assert chosen(tree, "other") == [(ORIGINAL, DORA)]

    def test_a_stack_without_adapters(self, tree: StudyTree) -> None:
        assert chosen(tree, "third") == []

    def test_conditions(self, tree: StudyTree) -> None:
        assert chosen(tree, protections=("mist",)) == [(MIST, ANNA), (COUNTERED, ANNA)]
        assert chosen(tree, protections=("mist",), countermeasures=("none",)) == [(MIST, ANNA)]
        assert chosen(tree, countermeasures=("noisy_upscaling",)) == [(COUNTERED, ANNA)]
        assert chosen(tree, protections=("none",), countermeasures=("noisy_upscaling",)) == []

    def test_artists(self, tree: StudyTree) -> None:
        assert chosen(tree, selection=Selection(artists=(CLARA.name,))) == [(ORIGINAL, CLARA)]
        assert chosen(tree, selection=Selection(styles=("cubism",))) == [(ORIGINAL, CLARA)]
        # One who has images and no adapter is known all the same.
        assert chosen(tree, selection=Selection(artists=(BORIS.name,))) == []

    def test_the_pilot_is_the_one_of_apply_tuning(self, tree: StudyTree) -> None:
        # Boris has an adapter and comes after Anna: he is not in the pilot, even where she has none.
        output_dir(tree, ORIGINAL, BORIS).mkdir(parents=True)
        shutil.rmtree(output_dir(tree, ORIGINAL, ANNA))
        pilot = Selection(pilot=True)
        assert chosen(tree, selection=pilot) == [(MIST, ANNA), (COUNTERED, ANNA), (ORIGINAL, CLARA)]

    def test_an_artist_whose_images_are_gone(self, tree: StudyTree) -> None:
        former = Artist("historical", "baroque", "Former_Artist")
        output_dir(tree, MIST, former).mkdir(parents=True)
        assert (MIST, former) in chosen(tree)
        assert chosen(tree, selection=Selection(artists=(former.name,))) == [(MIST, former)]

    def test_a_condition_whose_images_are_gone(self, tree: StudyTree) -> None:
        output_dir(tree, GLAZE_COUNTERED).mkdir(parents=True)
        assert chosen(tree, protections=("glaze",)) == [(GLAZE_COUNTERED, ANNA)]

    def test_names_that_match_nothing_are_told_all_at_once(self, tree: StudyTree) -> None:
        meant = AdapterFilter(
            protections=("mits", "mist"),
            countermeasures=("x",),
            selection=Selection(artists=("Anna_Burg",)),
        )
        with pytest.raises(UsageError) as caught:
            meant.choose(tree, STACK)
        first, second, third = caught.value.problems
        assert first == (
            "--protection mits: there are neither images nor adapters of it; did you mean 'mist'?"
        )
        assert second.startswith("--countermeasure x: there are neither images nor adapters of it; ")
        assert "did you mean 'Anna_Berg'" in third

    def test_an_empty_tree(self, tmp_path: Path) -> None:
        assert chosen(StudyTree(tmp_path / "nowhere")) == []


class TestImageFolders:
    def test_of_every_condition(self, tree: StudyTree) -> None:
        roots = (
            tree.original_art,
            tree.protected_art / "mist",
            tree.robust_samples / "noisy_upscaling" / "mist",
        )
        assert AdapterFilter().image_folders(tree) == [
            tree.images_of(root, artist) for root in roots for artist in EVERYBODY
        ]

    def test_of_some_conditions_and_artists(self, tree: StudyTree) -> None:
        anna = Selection(artists=(ANNA.name,))
        mist = AdapterFilter(protections=("mist",), selection=anna)
        assert mist.image_folders(tree) == [
            tree.images_of(root, ANNA)
            for root in (tree.protected_art / "mist", tree.robust_samples / "noisy_upscaling" / "mist")
        ]
        unprotected = AdapterFilter(protections=("none",), selection=anna)
        assert unprotected.image_folders(tree) == [tree.images_of(tree.original_art, ANNA)]
        countered = AdapterFilter(countermeasures=("noisy_upscaling",), selection=anna)
        assert countered.image_folders(tree) == [
            tree.images_of(tree.robust_samples / "noisy_upscaling" / "mist", ANNA)
        ]

    def test_samples_of_any_protection_are_named_once(self, shared_samples: StudyTree) -> None:
        meant = AdapterFilter(countermeasures=("noisy_upscaling",), selection=Selection(artists=(ANNA.name,)))
        assert meant.image_folders(shared_samples) == [
            shared_samples.images_of(shared_samples.robust_samples / "noisy_upscaling", ANNA)
        ]

    def test_a_set_that_is_missing_is_passed_over(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.images_of(tree.protected_art / "mist", ANNA))
        stranger = Artist("historical", "baroque", "Aaron_Aal")
        write_images(tree.images_of(tree.protected_art / "mist", stranger))
        folders = AdapterFilter(protections=("mist",), countermeasures=("none",)).image_folders(tree)
        assert folders == [
            tree.images_of(tree.protected_art / "mist", artist) for artist in (DORA, stranger, BORIS, CLARA)
        ]


class TestVariants:
    @pytest.fixture
    def several(self, tree: StudyTree) -> StudyTree:
        for variant in ("seed-43", "big", "big-seed-43"):
            tree.adapter_dir(AdapterId(STACK, MIST, CLARA, variant)).mkdir(parents=True)
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
        found = AdapterFilter(variants=names).choose(several, STACK)
        assert list(dict.fromkeys(adapter.variant for adapter in found)) == variants

    def test_unknown_ones_are_refused_at_once(self, several: StudyTree) -> None:
        with pytest.raises(UsageError) as caught:
            AdapterFilter(variants=("bigg", "seed-44", "big")).choose(several, STACK)
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
    adapter = AdapterId(STACK, MIST, ANNA)

    assert OwnImages(tree).problem(adapter, TrainingRun({"images": records})) == ""
    other = [{**record, "stem": "another"} for record in records]
    assert OwnImages(tree).problem(adapter, TrainingRun({"images": other})) == "paired with other originals"
