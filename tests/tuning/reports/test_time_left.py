"""How long a study still takes."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mimicry.common.claims import Lease
from mimicry.study.states import State
from mimicry.study.tree import AdapterId
from mimicry.tuning.adapters.inspect import AdapterStatus
from mimicry.tuning.adapters.training_run import TrainingRun
from mimicry.tuning.reports.time_left import time_left
from tests.small_study import ANNA, ORIGINAL

NOW = datetime(2026, 1, 2, 4, 0, 0, tzinfo=UTC)


def cell(state: State, *, variant: str | None = None, **fields: Any) -> AdapterStatus:
    record: dict[str, Any] = {name: fields.pop(name) for name in ("seconds", "finished_at") if name in fields}
    return AdapterStatus(
        adapter=AdapterId("stack", ORIGINAL, ANNA, variant), state=state, run=TrainingRun(record), **fields
    )


def done(seconds: float, **fields: Any) -> AdapterStatus:
    return cell(State.COMPLETE, seconds=seconds, **fields)


def at_work(since: str, **fields: Any) -> AdapterStatus:
    return cell(State.RUNNING, holder=Lease({"host": "gpu", "since": since}, 0.0), **fields)


def test_nothing_is_said_where_nothing_is_known_or_left() -> None:
    assert time_left([cell(State.PENDING)], NOW) is None
    assert time_left([done(100.0), cell(State.BLOCKED), cell(State.STALE), cell(State.NO_DATA)], NOW) is None


def test_what_is_to_be_trained_takes_the_median_of_the_last_ones() -> None:
    old = [done(9000.0, finished_at=f"2025-01-02T00:00:{second:02}") for second in range(30)]
    new = [done(seconds, finished_at="2026-01-02") for seconds in (100.0, 200.0, 600.0) * 7]
    todo = [cell(state) for state in (State.PENDING, State.FAILED, State.BROKEN, State.INTERRUPTED)]

    left = time_left([*new, *old, *todo], NOW)

    assert left is not None
    assert (left.seconds, left.each_seconds, left.count, left.workers) == (4 * 200.0, 200.0, 20, 0)


def test_a_checkpoint_and_the_steps_of_a_training_count() -> None:
    cells = [
        done(100.0),
        cell(State.INTERRUPTED, checkpoint=30, step_count=60),
        at_work("2026-01-02T03:00:00+00:00", steps=45, step_count=60),
    ]

    left = time_left(cells, NOW)

    assert left is not None
    assert left.seconds == pytest.approx(50 + 25)


def test_workers_share_what_is_left() -> None:
    running = [at_work("2026-01-02T03:59:10+00:00") for _ in range(2)]

    left = time_left([done(100.0), *running, *[cell(State.PENDING)] * 3], NOW)

    assert left is not None
    assert (left.seconds, left.workers) == ((2 * 50 + 3 * 100) / 2, 2)


def test_many_workers_do_not_hasten_the_last_training() -> None:
    running = [at_work("2026-01-02T03:58:20+00:00") for _ in range(8)]

    left = time_left([done(100.0), *running, cell(State.PENDING)], NOW)

    assert left is not None
    assert left.seconds == 100.0


def test_each_series_has_its_own_time() -> None:
    cells = [
        *[done(100.0)] * 3,
        done(900.0, variant="rank-32"),
        cell(State.PENDING),
        cell(State.PENDING, variant="rank-32"),
        cell(State.PENDING, variant="seed-43"),
    ]

    left = time_left(cells, NOW)

    assert left is not None
    assert left.seconds == 100.0 + 900.0 + 100.0


@pytest.mark.parametrize("since", ["yesterday", "2026-01-02T03:00:00"])
def test_a_time_that_cannot_be_read_is_not_taken_off(since: str) -> None:
    left = time_left([done(100.0), at_work(since)], NOW)

    assert left is not None
    assert left.seconds == 100.0
