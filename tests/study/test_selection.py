"""Filters, pilot, and names that match nothing."""

import pytest

from mimicry.common.errors import UsageError
from mimicry.study.matrix import Selection
from mimicry.study.tree import Artist
from tests.hostile_names import over_hostile_names
from tests.small_study import ANNA, BORIS, CLARA, DORA, EVERYBODY

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
