"""Charts as coordinates; the template draws them as SVG."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimicry.report.effects import AdapterSeries, GroupEffects
from mimicry.study import NONE, Artist, Condition, StudyTree
from mimicry.tuning.adapters import AdapterFolder

STRIP_WIDTH, STRIP_HEIGHT = 240, 26
CURVES_WIDTH, CURVES_HEIGHT = 420, 170
_MARGIN = 8
# A curve has at most so many points: each is the mean of the steps between.
_POINTS = 40
# The protections' colours are classes of the style sheet; of more, some share one.
COLOURS = 6


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The effects of one condition on a line: x of the artists, of the mean and of its interval."""

    artists: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


def effect_scale(found: GroupEffects) -> Scale:
    """Return the scale that all strips of a group share; it holds zero, and the noise floor."""
    values = [artist.value for one in found.conditions for artist in one.artists if artist.value is not None]
    ends = [
        end
        for one in found.conditions
        if one.summary and one.summary.interval
        for end in (one.summary.interval.low, one.summary.interval.high)
    ]
    noise = [found.noise.deviation, -found.noise.deviation] if found.noise else []
    return _scale([0.0, *values, *ends, *noise], _MARGIN, STRIP_WIDTH - _MARGIN)


def strips(found: GroupEffects, scale: Scale) -> list[Strip | None]:
    """Return a strip for each condition; None where nothing can be compared."""
    made: list[Strip | None] = []
    for one in found.conditions:
        if one.summary is None:
            made.append(None)
            continue
        interval = one.summary.interval
        made.append(
            Strip(
                artists=tuple(scale(artist.value) for artist in one.artists if artist.value is not None),
                mean=scale(one.summary.mean),
                interval=(scale(interval.low), scale(interval.high)) if interval else None,
            )
        )
    return made


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: `points` as SVG takes them. `colour` is a class, `dashed` is a countered condition's."""

    condition: Condition
    points: str
    colour: str
    dashed: bool


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of lines, with the values at its edges."""

    title: str
    curves: tuple[Curve, ...]
    low: float
    high: float
    last_step: int


def colour_of(condition: Condition, conditions: Sequence[Condition]) -> str:
    """Return the class of a condition's colour: one for each protection, and one for none."""
    names = list(dict.fromkeys(one.protection for one in conditions if one.protection != NONE))
    if condition.protection == NONE:
        return "c0"
    return f"c{1 + names.index(condition.protection) % COLOURS}"


def loss_charts(tree: StudyTree, series: AdapterSeries, artist: Artist) -> list[Chart]:
    """Return an artist's charts of the training loss and the evaluation loss, where there are lines."""
    rows = [row for (who, _), row in series.by_place.items() if who == artist and row.has_adapter]
    conditions = [row.adapter.condition for row in rows]
    metrics = [_metrics(AdapterFolder(tree.adapter_dir(row.adapter)).metrics) for row in rows]
    charts = []
    for title, key in (("Training loss", "loss"), ("Evaluation loss", "eval_loss")):
        lines = [_thinned([(step, one[key]) for step, one in found if key in one]) for found in metrics]
        chart = _chart(title, conditions, lines)
        if chart is not None:
            charts.append(chart)
    return charts


def _chart(
    title: str, conditions: Sequence[Condition], lines: Sequence[Sequence[tuple[float, float]]]
) -> Chart | None:
    values = [value for line in lines for _, value in line]
    steps = [step for line in lines for step, _ in line]
    if len(values) < 2 or max(steps) == min(steps):
        return None
    across = _scale([0.0, *steps], _MARGIN, CURVES_WIDTH - _MARGIN)
    down = _scale(values, CURVES_HEIGHT - _MARGIN, _MARGIN)
    curves = tuple(
        Curve(
            condition=condition,
            points=" ".join(f"{across(step)},{down(value)}" for step, value in line),
            colour=colour_of(condition, conditions),
            dashed=condition.countermeasure != NONE,
        )
        for condition, line in zip(conditions, lines, strict=True)
        if len(line) > 1
    )
    return Chart(title=title, curves=curves, low=min(values), high=max(values), last_step=int(max(steps)))


def _scale(values: Iterable[float], begin: float, end: float) -> Scale:
    values = list(values)
    low, high = min(values), max(values)
    return Scale(low, high if high > low else low + 1, begin, end)


def _metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    found = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            content = json.loads(line)
            step = int(content["step"])
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a training that was killed
        numbers = {
            name: float(value)
            for name, value in content.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        found.append((step, numbers))
    return found


def _thinned(line: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Return the means of equal parts of a line, and the whole line where it is short."""
    if len(line) <= _POINTS:
        return [(float(step), value) for step, value in line]
    made = []
    for part in range(_POINTS):
        points = line[part * len(line) // _POINTS : (part + 1) * len(line) // _POINTS]
        steps, values = zip(*points, strict=True)
        made.append((math.fsum(steps) / len(points), math.fsum(values) / len(points)))
    return made
