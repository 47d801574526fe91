"""The page: everything of a report in one HTML file, with pictures beside it."""

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
from mimicry.report.effects import ConditionEffect, GroupEffects, recipe_changes
from mimicry.report.grids import Grid
from mimicry.report.pictures import Copy, Shot
from mimicry.report.words import Answer, answers, facts, reasons, thousandths


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
    """Say in what the recipe of a group differs from that of the main one."""
    own, usual = found.group.usual, main.group.usual
    if own is None or usual is None:
        return "Its recipe is not known."
    changes = recipe_changes(usual, own)
    return f"Its recipe: {changes}." if changes else "The same recipe and the same seed again."


def _dose(found: GroupEffects, one: ConditionEffect) -> float | None:
    """Return the median PSNR of a condition's adapters to the originals, in dB."""
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
