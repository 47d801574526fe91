"""The table of a status: a row for each condition, a column for each style or artist.

The countermeasures of a protection stand indented below it. Where the names of the columns do not fit beside
each other they stand above each other, each over a line that leads down to its column; where the columns do
not fit either, there are several tables.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mimicry.common.text import printable
from mimicry.study import NONE, Artist, Condition, State, in_order
from mimicry.tuning.adapters.inspect import AdapterStatus

# What calls for attention, beside the number of complete cells.
_MARKS = {
    State.FAILED: "F",
    State.BLOCKED: "B",
    State.BROKEN: "X",
    State.STALE: "S",
    State.INTERRUPTED: "I",
    State.RUNNING: "r",
    State.QUEUED: "q",
}
# A cell that stands alone has a mark in the place of numbers.
_ALONE = {State.COMPLETE: "ok", State.WAITING: ".", State.NO_DATA: "-", **_MARKS}
_EVERYTHING = "all"
_GAP = "  "
_LINE = "|"


@dataclass(frozen=True)
class _Column:
    """A column: its title, and its text in each row."""

    title: str
    texts: list[str]

    @property
    def width(self) -> int:
        return max(map(len, self.texts), default=0)


def status_grid(cells: Sequence[AdapterStatus], *, by_artist: bool, width: int) -> str:
    """Return the table of the cells of one series, with what its marks mean; `width` is in characters.

    A condition without any images has no row.
    """
    names = _artist_names(cells) if by_artist else _style_names(cells)
    # No style has an empty name, which stands for all columns, as no condition stands for all rows.
    places: dict[tuple[Condition | None, str], list[AdapterStatus]] = {}
    for cell in cells:
        title = names[cell.adapter.artist]
        for place in _places(cell.adapter.condition, title):
            places.setdefault(place, []).append(cell)
    shown = {cell.adapter.condition for cell in cells if cell.has_data}
    rows = _rows(shown)
    titles = list(dict.fromkeys(names.values()))
    columns = [
        _Column(
            printable(title) or _EVERYTHING,
            [
                _text(places.get((condition, title), []), condition, one_artist=by_artist and title != "")
                for _, condition in rows
            ],
        )
        for title in (["", *titles] if len(titles) > 1 else titles)
    ]
    labels = _Column("condition", [printable(label) for label, _ in rows])
    lines = [line for part in _parts(labels, columns, width) for line in [*part, ""]]
    return "\n".join(
        [
            *lines[:-1],
            *_legend({cell.state for cell in cells if cell.adapter.condition in shown}, by_artist=by_artist),
        ]
    )


def _places(condition: Condition, title: str) -> Iterator[tuple[Condition | None, str]]:
    for row in (condition, None):
        for column in (title, ""):
            yield row, column


def _style_names(cells: Sequence[AdapterStatus]) -> dict[Artist, str]:
    artists = sorted({cell.adapter.artist for cell in cells})
    several = len({artist.split for artist in artists}) > 1
    return {artist: f"{artist.split}/{artist.style}" if several else artist.style for artist in artists}


def _artist_names(cells: Sequence[AdapterStatus]) -> dict[Artist, str]:
    artists = sorted({cell.adapter.artist for cell in cells})
    unique = len({artist.name for artist in artists}) == len(artists)
    return {artist: artist.name if unique else str(artist) for artist in artists}


def _rows(conditions: Collection[Condition]) -> list[tuple[str, Condition | None]]:
    """Return label and condition of each row, the last for all of them."""
    plain = {Condition(each.protection) for each in conditions}
    rows: list[tuple[str, Condition | None]] = [
        (each.protection if each.countermeasure == NONE else f"  {each.countermeasure}", each)
        for each in in_order({*conditions, *plain})
    ]
    return [*rows, (_EVERYTHING, None)] if len(conditions) > 1 else rows


def _text(cells: Sequence[AdapterStatus], condition: Condition | None, *, one_artist: bool) -> str:
    """Return what stands in a place of the table; in the last row, of all conditions, numbers alone."""
    if one_artist and condition is not None and cells:
        return _ALONE[cells[0].state]
    with_data = [cell for cell in cells if cell.has_data]
    if not with_data:
        return _ALONE[State.NO_DATA]
    states = {cell.state for cell in with_data}
    done = sum(cell.state is State.COMPLETE for cell in with_data)
    if condition is None:
        return str(done) if one_artist else f"{done}/{len(with_data)}"
    marks = "".join(mark for state, mark in _MARKS.items() if state in states)
    return f"{done}/{len(with_data)} {marks}".rstrip()


def _parts(labels: _Column, columns: Sequence[_Column], width: int) -> Iterator[list[str]]:
    label_width = max(len(labels.title), labels.width)
    beside = label_width + sum(len(_GAP) + max(len(each.title), each.width) for each in columns)
    if beside <= width:
        yield _beside(labels, columns)
        return
    begin = 0
    while begin < len(columns):
        end, place = begin, label_width
        # A name begins over its column, and may be longer than that.
        while end < len(columns):
            start = place + len(_GAP)
            place = start + columns[end].width
            if end > begin and max(place, start + len(columns[end].title)) > width:
                break
            end += 1
        yield _stacked(labels, columns[begin:end], label_width)
        begin = end


def _beside(labels: _Column, columns: Sequence[_Column]) -> list[str]:
    lines = [[column.title, *column.texts] for column in (labels, *columns)]
    widths = [max(map(len, texts)) for texts in lines]
    return [_joined(line, widths) for line in zip(*lines, strict=True)]


def _stacked(labels: _Column, columns: Sequence[_Column], label_width: int) -> list[str]:
    widths = [label_width, *(column.width for column in columns)]
    header = [
        _joined([labels.title if not number else "", *[_LINE] * number, column.title], widths)
        for number, column in enumerate(columns)
    ]
    rows = zip(*(column.texts for column in (labels, *columns)), strict=True)
    return [*header, *(_joined(row, widths) for row in rows)]


def _joined(texts: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(text.ljust(width) for text, width in zip(texts, widths, strict=False)).rstrip()


def _legend(states: Collection[State], *, by_artist: bool) -> list[str]:
    marks = _ALONE if by_artist else _MARKS
    words = [f"{mark} {state.value}" for state, mark in marks.items() if state in states]
    return [", ".join(words)] if words else []
