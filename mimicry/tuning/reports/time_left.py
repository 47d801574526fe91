"""How long a study still takes, at the rate of the trainings so far."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mimicry.study import State
from mimicry.tuning.adapters.inspect import TO_TRAIN, AdapterStatus

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
    """Return the median of what the last trainings took, in seconds."""
    latest = sorted(cells, key=lambda cell: cell.run.finished_at or "")[-_RECENT:]
    return statistics.median(cell.seconds or 0.0 for cell in latest)


def _part_left(cell: AdapterStatus, step: int | None) -> float:
    """Return which part of a training comes after optimizer step `step`; all where that is unknown."""
    if not step or not cell.step_count:
        return 1.0
    return max(0.0, 1 - step / cell.step_count)


def _elapsed(cell: AdapterStatus, now: datetime) -> float:
    """Return for how many seconds a training has been running; 0 when that is not known."""
    try:
        since = datetime.fromisoformat("" if cell.holder is None else cell.holder.since)
        return max(0.0, (now - since).total_seconds())
    except (ValueError, TypeError):  # TypeError: a time without a zone
        return 0.0
