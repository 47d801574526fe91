"""The table of a status: rows, columns, marks, and what happens where the terminal is narrow."""

from collections.abc import Mapping

from mimicry.study.tree import AdapterId, Artist, Condition, State
from mimicry.tuning.adapters.inspect import AdapterStatus
from mimicry.tuning.status.status_grid import status_grid
from tests.small_study import ANNA, BORIS, CLARA, COUNTERED, DORA, MIST, ORIGINAL

STATES: Mapping[tuple[Condition, Artist], State] = {
    (ORIGINAL, ANNA): State.COMPLETE,
    (ORIGINAL, BORIS): State.COMPLETE,
    (ORIGINAL, CLARA): State.FAILED,
    (MIST, ANNA): State.COMPLETE,
    (MIST, BORIS): State.RUNNING,
    (MIST, CLARA): State.STALE,
    (COUNTERED, ANNA): State.WAITING,
    (COUNTERED, BORIS): State.NO_DATA,
    (COUNTERED, CLARA): State.NO_DATA,
}


def cells(states: Mapping[tuple[Condition, Artist], State] = STATES) -> list[AdapterStatus]:
    return [
        AdapterStatus(adapter=AdapterId("stack", condition, artist), state=state)
        for (condition, artist), state in states.items()
    ]


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_conditions_are_rows_and_styles_are_columns() -> None:
    text = status_grid(cells(), by_artist=False, width=80)

    assert table(text) == [
        ["condition", "all", "baroque", "cubism"],
        ["none", "2/3", "F", "2/2", "0/1", "F"],
        ["mist", "1/3", "Sr", "1/2", "r", "0/1", "S"],
        ["noisy_upscaling", "0/1", "0/1", "-"],
        ["all", "3/7", "3/5", "0/2"],
        ["F", "failed,", "S", "stale,", "r", "running"],
    ]
    assert text.splitlines()[3].startswith("  noisy_upscaling  0/1")


def test_artists_may_be_columns() -> None:
    text = status_grid(cells(), by_artist=True, width=80)

    assert table(text) == [
        ["condition", "all", "Anna_Berg", "Boris_Cole", "Clara_Dunn"],
        ["none", "2/3", "F", "ok", "ok", "F"],
        ["mist", "1/3", "Sr", "ok", "r", "S"],
        ["noisy_upscaling", "0/1", ".", "-", "-"],
        ["all", "3/7", "2", "1", "0"],
        [
            *["ok", "complete,", ".", "waiting,", "-", "no", "data,"],
            *["F", "failed,", "S", "stale,", "r", "running"],
        ],
    ]


def test_where_names_do_not_fit_they_stand_above_each_other() -> None:
    assert status_grid(cells(), by_artist=True, width=45).splitlines()[:5] == [
        "condition          all",
        "                   |       Anna_Berg",
        "                   |       |   Boris_Cole",
        "                   |       |   |   Clara_Dunn",
        "none               2/3 F   ok  ok  F",
    ]


def test_where_columns_do_not_fit_there_are_several_tables() -> None:
    artists = [Artist("a", "b", f"artist_{number:02}") for number in range(30)]
    many = cells({(ORIGINAL, artist): State.COMPLETE for artist in artists})

    text = status_grid(many, by_artist=True, width=60)

    tables = text.split("\n\n")
    assert len(tables) == 3
    assert all(len(line) <= 60 for line in text.splitlines())
    assert all(part.startswith("condition  ") for part in tables)
    assert sum(part.count("ok") for part in tables) == 30 + 1  # and the legend
    assert [name for line in text.splitlines() for name in line.split() if "artist" in name] == [
        artist.name for artist in artists
    ]


def test_equal_names_are_told_apart() -> None:
    twin = Artist("contemporary", "cubism", ANNA.name)
    both = {(ORIGINAL, ANNA): State.COMPLETE, (ORIGINAL, twin): State.WAITING}

    by_artist = status_grid(cells(both), by_artist=True, width=120)
    by_style = status_grid(cells({**both, (ORIGINAL, DORA): State.COMPLETE}), by_artist=False, width=120)

    assert table(by_artist)[0] == ["condition", "all", str(twin), str(ANNA)]
    assert table(by_style)[0] == ["condition", "all", "contemporary/cubism", "historical/baroque"]


def test_a_single_row_and_column_have_no_sums() -> None:
    text = status_grid(cells({(ORIGINAL, ANNA): State.COMPLETE}), by_artist=False, width=80)

    assert table(text) == [["condition", "baroque"], ["none", "1/1"]]


def test_a_protection_has_a_row_above_its_countermeasures() -> None:
    text = status_grid(cells({(COUNTERED, ANNA): State.COMPLETE}), by_artist=False, width=80)

    assert [line.split()[0] for line in text.splitlines()] == ["condition", "mist", "noisy_upscaling"]


def test_names_stay_on_one_line() -> None:
    odd = Artist("a", "new\nline", "b")

    text = status_grid(cells({(ORIGINAL, odd): State.COMPLETE}), by_artist=False, width=80)

    assert text.splitlines()[0] == "condition  new\\nline"
