"""Which cells a study has, by its tree, its adapters and the filters."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.study.cells import CellImages
from mimicry.study.matrix import CellFilter, Matrix
from mimicry.study.selection import Selection
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree, folders_in
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    COUNTERED,
    DORA,
    GLAZE_COUNTERED,
    MIST,
    ORIGINAL,
    original,
    output_dir,
    share_samples,
    write_images,
    write_study,
)

STACK = "hf_diffusers"


@pytest.fixture
def tree(tree: StudyTree) -> StudyTree:
    """A study with a few folders of adapters; nobody looks into them here."""
    for condition, artist in ((COUNTERED, ANNA), (ORIGINAL, ANNA), (MIST, ANNA), (ORIGINAL, CLARA)):
        output_dir(tree, condition, artist).mkdir(parents=True)
    output_dir(tree, ORIGINAL, DORA, stack="other").mkdir(parents=True)
    return tree


def matrix(tree: StudyTree, stack: str = STACK, **names: Any) -> Matrix:
    return Matrix.choose(CellImages(tree), {}, [stack], CellFilter(**names))


def chosen(tree: StudyTree, stack: str = STACK, **names: Any) -> list[tuple[Condition, Artist]]:
    """Return the cells that have a folder of an adapter."""
    meant = [adapter for adapter in matrix(tree, stack, **names) if tree.adapter_dir(adapter).is_dir()]
    assert all(adapter == AdapterId(stack, adapter.condition, adapter.artist) for adapter in meant)
    return [(adapter.condition, adapter.artist) for adapter in meant]


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
        with pytest.raises(UsageError) as caught:
            matrix(
                tree,
                protections=("mits", "mist"),
                countermeasures=("x",),
                selection=Selection(artists=("Anna_Burg",)),
            )
        first, second, third = caught.value.problems
        assert "--protection mits" in first and "did you mean 'mist'" in first
        assert "--countermeasure x" in second
        assert "did you mean 'Anna_Berg'" in third

    def test_an_empty_tree(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="original_art is not a folder"):
            matrix(StudyTree(tmp_path / "nowhere"))

    def test_a_condition_that_always_belongs_to_it(self, tree: StudyTree) -> None:
        images = CellImages(tree)
        found = Matrix.choose(images, {}, [STACK], CellFilter(protections=("mist",)), always=[ORIGINAL])
        assert found.conditions == (ORIGINAL, MIST, COUNTERED)

    def test_all_means_every_name(self, tree: StudyTree) -> None:
        assert list(matrix(tree, protections=("all",), countermeasures=("all",))) == list(matrix(tree))


def keys(tree: StudyTree) -> set[str]:
    """Return the keys of the cells with images in all series that have a folder, without split and style."""
    images = CellImages(tree)
    cells = Matrix.choose(images, {}, folders_in(tree.lora)).with_images(images)
    return {cell.key.replace("historical/baroque/", "") for cell in cells}


def begin(tree: StudyTree, series: str = STACK, condition: Condition = ORIGINAL) -> None:
    output_dir(tree, condition, stack=series).mkdir(parents=True)


class TestCellsWithImages:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> StudyTree:
        return write_study(tmp_path / "small", [ANNA, BORIS])

    def test_a_study_that_was_not_begun_has_none(self, tree: StudyTree) -> None:
        assert keys(tree) == set()

    def test_every_series_has_all_cells_with_images(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.images_of(tree.protected_art / "mist", BORIS))
        begin(tree)
        begin(tree, "hf_diffusers@seed-43")

        cells = {
            f"{condition}/{name}"
            for condition in ("none/none", "mist/none", "mist/noisy_upscaling")
            for name in ("Anna_Berg", "Boris_Cole")
        } - {"mist/none/Boris_Cole"}
        assert keys(tree) == {
            f"{series}/{cell}" for series in ("hf_diffusers", "hf_diffusers@seed-43") for cell in cells
        }

    def test_samples_that_two_protections_share_count_where_they_were_trained_on(
        self, tree: StudyTree
    ) -> None:
        share_samples(tree)
        begin(tree)
        assert not any("noisy_upscaling" in key for key in keys(tree))
        begin(tree, condition=COUNTERED)

        assert {key for key in keys(tree) if "noisy_upscaling" in key} == {
            "hf_diffusers/mist/noisy_upscaling/Anna_Berg",
            "hf_diffusers/mist/noisy_upscaling/Boris_Cole",
        }

    def test_a_folder_of_other_files_has_no_images(self, tree: StudyTree) -> None:
        begin(tree)
        for path in original(tree).iterdir():
            path.rename(path.with_suffix(".heic"))

        assert "hf_diffusers/none/none/Anna_Berg" not in keys(tree)
        write_images(original(tree))
        assert "hf_diffusers/none/none/Anna_Berg" in keys(tree)
