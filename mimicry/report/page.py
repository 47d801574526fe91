"""The page: everything of a report in one HTML file, with pictures beside it.

Its matrix has every artist under every condition: the effect, or a word for why there is none.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import mimicry
from mimicry.common.text import printable
from mimicry.report import charts
from mimicry.report.content import Content, condition_title
from mimicry.report.effects import ArtistEffect, ConditionEffect, Effect, GroupEffects, recipe_changes
from mimicry.report.grids import Grid
from mimicry.report.pictures import Copy, Shot
from mimicry.report.rows import BASELINE
from mimicry.report.words import Answer, answers, facts, reasons, thousandths
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
    rows = [series.by_place[artist, BASELINE] for series in found.group.series]
    losses = [row.eval_loss.end for row in rows if row.eval_loss is not None]
    if losses:
        mean = sum(losses) / len(losses)
        return f"{mean:.4f}", mean
    return "no loss" if rows[0].state is State.COMPLETE else rows[0].state.value, None


@dataclass(frozen=True, kw_only=True)
class EffectRow:
    """A row of the table of effects."""

    found: ConditionEffect
    answer: Answer
    strip: charts.Strip | None
    dose: float | None


def environment() -> Environment:
    """Return what renders the templates: everything that is put in is escaped, and must be there."""
    made = Environment(
        loader=PackageLoader("mimicry.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "thousandths": thousandths,
        "condition": condition_title,
        "printable": printable,
        "probability": _probability,
    }
    return made


def page(content: Content, grids: Sequence[Grid], copies: Mapping[Shot, Copy], *, title: str) -> str:
    """Return the page.

    Args:
        grids: of the artists that pictures are shown of.
        copies: of the pictures in `grids`; one that is not among them could not be read.
    """
    main = content.main
    return (
        environment()
        .get_template("page.html")
        .render(
            title=title,
            content=content,
            version=mimicry.__version__,
            groups=[_group(found, main) for found in content.groups],
            facts=facts(main),
            reasons=reasons(main),
            matrix=matrix(main),
            recipe=_recipe(main),
            artists=[
                {"grid": grid, "charts": charts.loss_charts(content.tree, main.group.series[0], grid.artist)}
                for grid in grids
            ],
            # Where something was drawn; the others are a click away.
            opened=next((grid for grid in grids if grid.has_samples), grids[0] if grids else None),
            copies=copies,
            sizes=charts,
        )
    )


def _group(found: GroupEffects, main: GroupEffects) -> dict[str, Any]:
    scale = charts.effect_scale(found)
    strips = charts.strips(found, scale)
    noise = None
    if found.noise is not None:
        noise = scale(-found.noise.deviation), scale(found.noise.deviation)
    rows = [
        EffectRow(found=one, answer=answer, strip=strip, dose=_dose(found, one))
        for one, answer, strip in zip(found.conditions, answers(found), strips, strict=True)
    ]
    return {
        "found": found,
        "changes": _changes(found, main),
        "scale": scale,
        "noise": noise,
        "rows": rows,
        # A block for each protection, with what counters it; they come in this order.
        "blocks": [list(block) for _, block in groupby(rows, lambda row: row.found.condition.protection)],
    }


def _changes(found: GroupEffects, main: GroupEffects) -> str:
    own, usual = found.group.usual, main.group.usual
    if own is None or usual is None:
        return "Its recipe is not known."
    changes = recipe_changes(usual, own)
    return f"Its recipe: {changes}." if changes else "The same recipe and the same seed again."


def _dose(found: GroupEffects, one: ConditionEffect) -> float | None:
    values = [row.psnr for row in found.group.rows if row.adapter.condition == one.condition]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _recipe(found: GroupEffects) -> list[tuple[str, str]]:
    usual = found.group.usual
    if usual is None or usual.recipe is None:
        return []
    return [(name, str(value)) for name, value in sorted(usual.recipe["options"].items())]


def _probability(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
