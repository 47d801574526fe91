"""Which cells a study has, by its tree, its adapters and the filters."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import UsageError
from mimicry.study.cells import CellImages
from mimicry.study.matrix import CellFilter, ChosenConditions, Matrix, Selection, in_order
from mimicry.study.tree import ALL, AdapterId, Artist, Condition, StudyTree, folders_in
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


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    """A tree with mist and glaze, and mist countered by impress."""
    for folder in (
        "original_art/s/y/Anna",
        "protected_art/mist/s/y/Anna",
        "protected_art/glaze/s/y/Anna",
        "robust_samples/impress/mist/s/y/Anna",
    ):
        (tmp_path / folder).mkdir(parents=True)
    return StudyTree(tmp_path)


def names(chosen: ChosenConditions) -> list[str]:
    return [str(condition) for condition in chosen.present]


def without_images(chosen: ChosenConditions) -> list[str]:
    return [str(condition) for condition, _ in chosen.absent]


class TestChoose:
    def test_all_are_none_and_every_folder(self, tree: StudyTree) -> None:
        chosen = ChosenConditions.choose(tree)
        assert names(chosen) == ["none__none", "glaze__none", "mist__none", "mist__impress"]
        assert without_images(chosen) == ["none__impress", "glaze__impress"]
        assert all(str(tree.robust_samples / "impress") in reason for _, reason in chosen.absent)

    def test_names_are_multiplied(self, tree: StudyTree) -> None:
        chosen = ChosenConditions.choose(tree, ("none", "mist", "none"), ("none",))
        assert names(chosen) == ["none__none", "mist__none"]
        assert chosen.absent == ()

    def test_a_pair_of_typed_names_needs_images(self, tree: StudyTree) -> None:
        with pytest.raises(UsageError) as caught:
            ChosenConditions.choose(tree, ("none", "mist", "glaze"), ("none", "impress"))
        assert len(caught.value.problems) == 2
        assert all("`all`" in problem for problem in caught.value.problems)
        assert ["--protection glaze" in problem for problem in caught.value.problems] == [False, True]

    def test_and_so_does_every_artist_of_it(self, tree: StudyTree) -> None:
        typed = ChosenConditions.choose(tree, ("mist",), ("none", ALL))
        assert [typed.needs(condition) for condition in typed.present] == [True, False]
        written = ChosenConditions.choose(tree, ("mist",), ("none",), needed=False)
        assert not written.needs(written.present[0])

    def test_unless_they_are_not_needed(self, tree: StudyTree) -> None:
        chosen = ChosenConditions.choose(tree, ("none", "mist"), ("none", "impress"), needed=False)
        assert names(chosen) == ["none__none", "mist__none", "mist__impress"]
        assert without_images(chosen) == ["none__impress"]

    def test_a_pair_of_one_typed_name_need_not_have_images(self, tree: StudyTree) -> None:
        chosen = ChosenConditions.choose(tree, (ALL,), ("impress",))
        assert names(chosen) == ["mist__impress"]
        chosen = ChosenConditions.choose(tree, ("glaze",), (ALL,))
        assert names(chosen) == ["glaze__none"]

    def test_a_typed_name_without_any_images_is_refused(self, tree: StudyTree) -> None:
        with pytest.raises(UsageError, match="anti_dreambooth") as caught:
            ChosenConditions.choose(tree, ("anti_dreambooth", "mist"), (ALL,))
        assert len(caught.value.problems) == 1
        assert names(ChosenConditions.choose(tree, ("anti_dreambooth",), (ALL,), needed=False)) == []

    def test_all_unknown_names_are_refused_at_once(self, tree: StudyTree) -> None:
        with pytest.raises(UsageError) as caught:
            ChosenConditions.choose(tree, ("mits", ALL), ("imprss",), needed=False)
        assert len(caught.value.problems) == 2
        assert all("did you mean" in problem for problem in caught.value.problems)

    def test_samples_that_do_not_name_their_protection_are_nobodys_for_all(self, tree: StudyTree) -> None:
        (tree.robust_samples / "diff_pure/s/y/Anna").mkdir(parents=True)
        chosen = ChosenConditions.choose(tree, (ALL,), ("diff_pure",), needed=False)
        assert chosen.present == ()
        assert without_images(chosen) == ["none__diff_pure", "glaze__diff_pure", "mist__diff_pure"]
        # A typed one is believed, and so is the only one that there is.
        assert names(ChosenConditions.choose(tree, ("mist",), ("diff_pure",))) == ["mist__diff_pure"]
        shutil.rmtree(tree.protected_art / "glaze")
        assert names(ChosenConditions.choose(tree, (ALL,), ("diff_pure",))) == ["mist__diff_pure"]


def test_unprotected_comes_first_and_each_before_its_countered_ones() -> None:
    conditions = [
        Condition(),
        Condition("none", "impress"),
        Condition("anti_dreambooth"),
        Condition("anti_dreambooth", "diff_pure"),
        Condition("anti_dreambooth", "impress"),
        Condition("mist"),
        Condition("zzz", "aaa"),
    ]
    assert in_order([*conditions[::-1], *conditions]) == conditions


MONET = Artist("historical", "impressionism", "Claude_Monet")


def choose(
    selection: Selection, known: tuple[Artist, ...] = EVERYBODY, few: tuple[Artist, ...] = ()
) -> list[Artist]:
    """Choose from `known`; the artists in `few` have not enough images."""
    return selection.choose(list(known), lambda artist: artist not in few)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(), [DORA, ANNA, BORIS, CLARA]),
        (Selection(splits=("historical",)), [ANNA, BORIS, CLARA]),
        (Selection(styles=("cubism",)), [DORA, CLARA]),
        (Selection(styles=("cubism", "baroque")), [DORA, ANNA, BORIS, CLARA]),
        (Selection(artists=("Clara_Dunn", "Anna_Berg")), [ANNA, CLARA]),
        (Selection(splits=("historical",), styles=("cubism",)), [CLARA]),
        (Selection(styles=("baroque",), artists=("Boris_Cole", "Clara_Dunn")), [BORIS]),
        (Selection(pilot=True), [DORA, ANNA, CLARA]),
        (Selection(pilot=True, styles=("cubism",)), [DORA, CLARA]),
        (Selection(pilot=True, splits=("historical",), artists=("Anna_Berg",)), [ANNA]),
    ],
    ids=repr,
)
def test_filters_of_one_kind_add_up_and_kinds_narrow_down(selection: Selection, chosen: list[Artist]) -> None:
    assert choose(selection) == chosen


def test_one_name_in_two_styles_means_both() -> None:
    twin = Artist("contemporary", "baroque", "Anna_Berg")

    assert choose(Selection(artists=("Anna_Berg",)), (twin, ANNA, BORIS)) == [twin, ANNA]


def test_pilot_takes_the_first_by_name_that_has_enough_images() -> None:
    assert choose(Selection(pilot=True), (CLARA, BORIS, ANNA)) == [ANNA, CLARA]
    assert choose(Selection(pilot=True), few=(ANNA,)) == [DORA, BORIS, CLARA]
    assert choose(Selection(pilot=True), few=(ANNA, BORIS)) == [DORA, CLARA]


def test_every_name_that_matches_nothing_is_reported_at_once_with_the_nearest() -> None:
    selection = Selection(
        splits=("historic",), styles=("cubizm", "baroque"), artists=("monet", "Ana_Berg", "Clara_Dunn")
    )

    with pytest.raises(UsageError) as caught:
        choose(selection, (*EVERYBODY, MONET))

    split, style, part, typo = caught.value.problems
    assert split.startswith("--split historic matches") and "'historical'" in split
    assert style.startswith("--style cubizm matches") and "'cubism'" in style
    assert part.startswith("--artist monet matches") and "'Claude_Monet'" in part
    assert typo.startswith("--artist Ana_Berg matches") and "'Anna_Berg'" in typo


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(
        UsageError, match=r"--artist xyz .*available: Anna_Berg, Boris_Cole, Clara_Dunn, Dora_Eik"
    ):
        choose(Selection(artists=("xyz",)))


def test_names_are_compared_exactly() -> None:
    with pytest.raises(UsageError, match="did you mean 'Anna_Berg'"):
        choose(Selection(artists=("anna_berg",)))


def test_filters_that_leave_nobody_together_say_whom_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        choose(Selection(styles=("cubism",), artists=("Anna_Berg",)))

    (problem,) = caught.value.problems
    assert "no artist matches all filters together" in problem
    assert all(str(artist) in problem for artist in EVERYBODY)


def test_an_artist_who_is_no_pilot_is_refused_with_the_pilots() -> None:
    with pytest.raises(UsageError) as caught:
        choose(Selection(pilot=True, artists=("Boris_Cole",)))

    (problem,) = caught.value.problems
    assert f"--pilot picks {DORA}, {ANNA}, {CLARA}" in problem
    assert str(BORIS) not in problem


def test_a_pilot_of_nobody_and_a_study_of_nobody() -> None:
    with pytest.raises(UsageError, match="--pilot picks nobody"):
        choose(Selection(pilot=True), few=EVERYBODY)
    with pytest.raises(UsageError, match="there is no artist: put images at original_art/SPLIT/STYLE/ARTIST"):
        choose(Selection(), ())


@over_hostile_names
def test_hostile_names_are_names(hostile_name: str) -> None:
    hostile = Artist(hostile_name, hostile_name, hostile_name)
    selection = Selection(splits=(hostile_name,), styles=(hostile_name,), artists=(hostile_name,))

    assert choose(selection, (hostile, *EVERYBODY)) == [hostile]
    with pytest.raises(UsageError) as caught:
        choose(selection)
    assert [problem.split(" matches no artist")[0] for problem in caught.value.problems] == [
        f"--split {hostile_name}",
        f"--style {hostile_name}",
        f"--artist {hostile_name}",
    ]
