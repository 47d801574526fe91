"""A status in words, and as JSON."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mimicry.common.text import printable
from mimicry.study import State
from mimicry.tuning.adapters import TO_TRAIN, AdapterStatus, recipe_hash
from mimicry.tuning.planning.recipes import RecipeGroup, StudyRecipes, evaluation_remarks
from mimicry.tuning.status.status_grid import status_grid
from mimicry.tuning.status.study_status import BAD, StudyStatus, count_states

# Without -v, so many items of a list are shown, and so many cells that have the same reason.
_SHOWN = 5
_SHOWN_ALIKE = 3
_DAY_SECONDS = 86400


def status_text(status: StudyStatus, *, by_artist: bool, verbose: bool, width: int, now: datetime) -> str:
    """Return a status for people; `width` is in characters, and `now` has a time zone."""
    lines: list[str] = []
    series = status.matrix.series
    for name in series:
        if len(series) > 1:
            lines += [name]
        cells = [cell for cell in status.cells if cell.adapter.series == name]
        lines += [status_grid(cells, by_artist=by_artist, width=width), ""]
    shown = None if verbose else _SHOWN
    lines += _counts(status)
    lines += _listed(
        "at work", [_work(cell, series) for cell in status.cells if cell.holder is not None], shown
    )
    queued = [f"{_name(cell, series)}: {cell.reason}" for cell in status.with_state(State.QUEUED)]
    lines += _listed("queued", queued, shown)
    lines += _recipe_lines(status)
    lines += _listed(
        "uploads owed", [f"{_name(cell, series)}: {cell.owed}" for cell in status.cells if cell.owed], shown
    )
    waiting = [cell for cell in status.cells if cell.checkpoint is not None]
    lines += _listed("waiting checkpoints", [_checkpoint(cell, series) for cell in waiting], shown)
    lines += _time_line(status, now)
    for state in (*BAD, State.STALE, State.INTERRUPTED):
        lines += _reasons(status, state, verbose=verbose)
    return "\n".join(lines)


def status_json(status: StudyStatus) -> dict[str, Any]:
    """Return a status for programs."""
    return {
        "data_root": str(status.tree.data_root),
        "cells": [cell.to_json() for cell in status.cells],
        "counts": {state.value: count for state, count in status.counts.items()},
        "recipes": {series: _recipes_json(recipes) for series, recipes in status.recipes.items()},
    }


def _recipes_json(recipes: StudyRecipes) -> list[dict[str, Any]]:
    return [
        {
            "recipe_hash": recipe_hash(group.recipe),
            "adapters": len(group.adapters),
            "conditions": dict(Counter(str(adapter.condition) for adapter in group.adapters)),
            "differs_in": recipes.groups[0].changes_to(group),
        }
        for group in recipes.groups
    ]


def _listed(title: str, items: Sequence[str], shown: int | None) -> Iterator[str]:
    if items:
        yield f"{title} ({len(items)}):"
        yield from _first(items, shown, indent=2)


def _first(items: Sequence[str], shown: int | None, *, indent: int) -> Iterator[str]:
    yield from (" " * indent + printable(item) for item in items[:shown])
    if shown is not None and len(items) > shown:
        yield " " * indent + f"and {len(items) - shown} more, shown by -v"


def _name(cell: AdapterStatus, series: Sequence[str]) -> str:
    name = f"{cell.adapter.condition}/{cell.adapter.artist}"
    return f"{cell.adapter.series}/{name}" if len(series) > 1 else name


def _work(cell: AdapterStatus, series: Sequence[str]) -> str:
    assert cell.holder is not None
    words = [_name(cell, series), f"on {cell.holder.host}", f"since {cell.holder.since}"]
    if cell.state is not State.RUNNING:
        words.append(f"({cell.state.value})")
    elif cell.steps:
        words.append(f"at {_step(cell.steps, cell)}")
    if cell.state is State.RUNNING and cell.job_log:
        words.append(f"({cell.reason}, log: {cell.job_log})")
    return " ".join(words)


def _checkpoint(cell: AdapterStatus, series: Sequence[str]) -> str:
    assert cell.checkpoint is not None
    return f"{_name(cell, series)}: resumes at {_step(cell.checkpoint, cell)}"


def _step(step: int, cell: AdapterStatus) -> str:
    return f"step {step} of {cell.step_count}" if cell.step_count else f"step {step}"


def _reasons(status: StudyStatus, state: State, *, verbose: bool) -> Iterator[str]:
    alike: dict[str, list[AdapterStatus]] = {}
    for cell in status.with_state(state):
        folder = status.tree.adapter_dir(cell.adapter)
        reason = cell.reason.split("\n")[0].replace(f"{folder}/", "") or "no reason was recorded"
        alike.setdefault(reason, []).append(cell)
    if not alike:
        return
    yield f"{state.value} ({sum(map(len, alike.values()))}):"
    for reason, cells in list(alike.items())[: None if verbose else _SHOWN]:
        yield printable(f"  {reason}")
        names = [_name(cell, status.matrix.series) for cell in cells]
        yield from _first(names, None if verbose else _SHOWN_ALIKE, indent=4)
        log = next((cell.log for cell in cells if cell.log is not None), None)
        if state in BAD and log is not None:
            yield printable(f"    log: {status.tree.data_root / log}")
    if not verbose and len(alike) > _SHOWN:
        yield f"  and {len(alike) - _SHOWN} other reasons, shown by -v"


def _counts(status: StudyStatus) -> Iterator[str]:
    present = {cell.adapter.condition for cell in status.cells if cell.has_data}
    counts = count_states(cell for cell in status.cells if cell.adapter.condition in present)
    yield ", ".join(f"{count} {state.value}" for state, count in counts.items())
    without = [str(condition) for condition in status.matrix.conditions if condition not in present]
    if without:
        yield printable(f"no images of anybody: {', '.join(without)}")


def _recipe_lines(status: StudyStatus) -> Iterator[str]:
    for series, recipes in status.recipes.items():
        yield from (printable(f"{series}: {remark}") for remark in evaluation_remarks(recipes))
        if not recipes.is_mixed:
            continue
        yield f"{series} has {len(recipes.groups)} recipes:"
        for group in recipes.groups:
            yield printable(f"  {_recipe(group, recipes.groups[0])}")


def _recipe(group: RecipeGroup, most: RecipeGroup) -> str:
    count = len({adapter.condition for adapter in group.adapters})
    where = group.places() if count <= _SHOWN_ALIKE else f"in {count} conditions"
    words = f"{len(group.adapters)} adapters ({where}), {recipe_hash(group.recipe)[:12]}"
    return words if group is most else f"{words}: {', '.join(most.changes_to(group))}"


def _time_line(status: StudyStatus, now: datetime) -> Iterator[str]:
    left = time_left(status.cells, now)
    if left is None:
        return
    workers = f"{left.workers} at a time, as now" if left.workers else "one at a time (none runs now)"
    each = _long_time(left.each_seconds)
    took = (
        f"the last one took {each}" if left.count == 1 else f"the median of the last {left.count} is {each}"
    )
    yield f"time left: about {_long_time(left.seconds)} with {workers}; {took}"


def _long_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if seconds < _DAY_SECONDS:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


# So many of the last trainings tell how long one takes.
_RECENT = 20


@dataclass(frozen=True)
class TimeLeft:
    """An estimate, and what it was made from.

    `each_seconds` is the median of the last `count` trainings. `workers` train at once; 0 when nobody does,
    and then one is assumed.
    """

    seconds: float
    each_seconds: float
    count: int
    workers: int


def time_left(cells: Sequence[AdapterStatus], now: datetime) -> TimeLeft | None:
    """Estimate how long the cells that are in training, and those that are still to be trained, take.

    Returns None when nothing is left, or nothing is known of how long a training takes.

    Args:
        now: the present time, with its time zone.
    """
    running = [cell for cell in cells if cell.state is State.RUNNING]
    waiting = [cell for cell in cells if cell.state in (*TO_TRAIN, State.QUEUED)]
    timed = [cell for cell in cells if cell.state in (State.COMPLETE, State.STALE) and cell.seconds]
    if not timed or (not running and not waiting):
        return None
    everywhere = _typical(timed)
    # Another rank or number of steps takes another time.
    of_series = {cell.adapter.series: 0.0 for cell in (*running, *waiting)}
    for series in of_series:
        own = [cell for cell in timed if cell.adapter.series == series]
        of_series[series] = _typical(own) if own else everywhere
    left = [of_series[cell.adapter.series] * _part_left(cell, cell.checkpoint) for cell in waiting]
    for cell in running:
        whole = of_series[cell.adapter.series]
        # Before the first step there is only the time of day to go by.
        left.append(
            whole * _part_left(cell, cell.steps) if cell.steps else max(0.0, whole - _elapsed(cell, now))
        )
    # However many workers there are, one training has only one.
    seconds = max(sum(left) / max(1, len(running)), *left)
    return TimeLeft(seconds, everywhere, min(len(timed), _RECENT), len(running))


def _typical(cells: Sequence[AdapterStatus]) -> float:
    latest = sorted(cells, key=lambda cell: cell.run.finished_at or "")[-_RECENT:]
    return statistics.median(cell.seconds or 0.0 for cell in latest)


def _part_left(cell: AdapterStatus, step: int | None) -> float:
    if not step or not cell.step_count:
        return 1.0
    return max(0.0, 1 - step / cell.step_count)


def _elapsed(cell: AdapterStatus, now: datetime) -> float:
    try:
        since = datetime.fromisoformat("" if cell.holder is None else cell.holder.since)
        return max(0.0, (now - since).total_seconds())
    except (ValueError, TypeError):  # TypeError: a time without a zone
        return 0.0
