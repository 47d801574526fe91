"""Every artist under every condition: the effect, or a word for why there is none, in the cell itself."""

from dataclasses import dataclass

from mimicry.report.content import condition_title
from mimicry.report.effects import ArtistEffect, Effect, GroupEffects
from mimicry.report.rows import BASELINE
from mimicry.study import Artist, EvaluatedOn, State

# The words of a cell, by how an obstacle begins; the first that fits is shown, the others are in the reasons.
_WORDS = (
    ("unpaired", "unpaired"),
    ("another recipe", "other recipe"),
    ("seed", "other seed"),
    ("no evaluation loss", "no loss"),
    ("evaluated", "other loss"),
    ("starts from", "other start"),
    (f"there is no {BASELINE}", "no original"),
    (f"{BASELINE}:", "no original"),
)


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """One cell. `shade` is the effect over the largest of all, from -1 to 1.

    `word` stands in the place of a figure that is not there. `marks` are short, `reasons` are sentences.
    """

    value: float | None
    shade: float = 0.0
    word: str = ""
    marks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """The cells of an artist. `baseline` is the evaluation loss of none__none, or a word.

    `is_whole` says whether there is an effect in every cell that has images.
    """

    artist: Artist
    baseline: str
    baseline_value: float | None
    cells: tuple[MatrixCell, ...]
    is_whole: bool


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """All artists; `titles` are those of the conditions, in the order of the cells."""

    titles: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def matrix(found: GroupEffects) -> Matrix:
    conditions = [one.condition for one in found.conditions]
    values = [abs(one.value) for one in found.by_place.values() if one.value is not None]
    largest = max(values, default=0.0) or 1.0
    rows = []
    for artist in found.group.artists:
        effects = [found.by_place[artist, condition] for condition in conditions]
        cells = tuple(_cell(one, largest) for one in effects)
        word, value = _baseline(found, artist)
        is_whole = all(
            effect.value is not None or effect.row.state is State.NO_DATA
            for one in effects
            for effect in one.effects
        )
        rows.append(
            MatrixRow(artist=artist, baseline=word, baseline_value=value, cells=cells, is_whole=is_whole)
        )
    return Matrix(titles=tuple(map(condition_title, conditions)), rows=tuple(rows))


def _cell(one: ArtistEffect, largest: float) -> MatrixCell:
    notes = {note for effect in one.effects for note in effect.notes}
    marks: list[str] = [EvaluatedOn.IN_SAMPLE] if EvaluatedOn.IN_SAMPLE in notes else []
    if notes - {EvaluatedOn.IN_SAMPLE}:
        marks.append("other numerics")
    several = len(one.effects) > 1
    reasons = tuple(
        f"{f'{effect.series.name}: ' if several else ''}{word}"
        for effect in one.effects
        for word in (*effect.obstacles, *effect.notes)
        if word != EvaluatedOn.IN_SAMPLE
    )
    if one.value is None:
        words = dict.fromkeys(_word(effect) for effect in one.effects)
        return MatrixCell(value=None, word=", ".join(words), reasons=reasons)
    if len(one.values) < len(one.effects):
        marks.insert(0, f"{len(one.values)} of {len(one.effects)} seeds")
    return MatrixCell(value=one.value, shade=one.value / largest, marks=tuple(marks), reasons=reasons)


def _word(effect: Effect) -> str:
    if effect.row.state is not State.COMPLETE:
        return effect.row.state.value
    first = effect.obstacles[0]
    return next((word for begin, word in _WORDS if first.startswith(begin)), "not comparable")


def _baseline(found: GroupEffects, artist: Artist) -> tuple[str, float | None]:
    """Return the mean loss of the artist's adapters without protection, as text and as a number."""
    rows = [series.by_place[artist, BASELINE] for series in found.group.series]
    losses = [row.eval_loss.end for row in rows if row.eval_loss is not None]
    if losses:
        mean = sum(losses) / len(losses)
        return f"{mean:.4f}", mean
    return "no loss" if rows[0].state is State.COMPLETE else rows[0].state.value, None
