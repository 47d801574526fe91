"""Conditions by name and by `all`, and the order in which they are shown."""

import shutil
from pathlib import Path

import pytest

from mimicry.common.errors import UsageError
from mimicry.study.matrix import ChosenConditions, in_order
from mimicry.study.tree import ALL, Condition, StudyTree


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
