"""A status in words, and as JSON."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mimicry.common.claims import Claim, Lease
from mimicry.study.tree import AdapterId, State, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.inspect import AdapterStatus
from mimicry.tuning.adapters.recipe import recipe_hash
from mimicry.tuning.adapters.training_run import TrainingRun
from mimicry.tuning.status.status_text import status_json, status_text, time_left
from mimicry.tuning.status.study_status import StudyStatus
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    CONFIG,
    COUNTERED,
    DORA,
    EVERYBODY,
    MIST,
    ORIGINAL,
    asked_for,
    original,
    output_dir,
    put_adapter,
    write_adapter,
)
from tests.tuning.status.study_states import (
    PLAIN,
    put_all,
    put_bookmark,
    put_checkpoint,
    put_record,
    status_of,
)

NOW = datetime(2026, 1, 2, 4, 0, 0, tzinfo=UTC)


def text_of(status: StudyStatus, *, verbose: bool = False) -> str:
    return status_text(status, by_artist=False, verbose=verbose, width=120, now=NOW)


def after(text: str, title: str) -> list[str]:
    """Return the indented lines below the line that begins with `title`."""
    lines = text.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith(title))
    below = []
    for line in lines[number + 1 :]:
        if not line.startswith(" "):
            break
        below.append(line)
    return below


@pytest.fixture
def several(tree: StudyTree) -> StudyTree:
    """A study with a cell in most states: complete, owed, stale, broken, failed, interrupted, blocked."""
    put_all(tree, ORIGINAL, artists=EVERYBODY)
    put_adapter(tree, artist=DORA, hub={"owed": "x", "error": "the Hub is away"})
    write_adapter(output_dir(tree, artist=CLARA), original(tree, CLARA), replace(CONFIG, learning_rate=0.5))
    weights = output_dir(tree, artist=BORIS) / WEIGHTS
    weights.write_bytes(b"short")
    for artist in (ANNA, BORIS):
        put_record(output_dir(tree, MIST, artist), status="failed", error="it burned\nand burned")
    folder = put_record(
        output_dir(tree, MIST, CLARA), status="interrupted", error="stopped", options={"max_train_steps": 60}
    )
    put_checkpoint(folder, 27)
    put_bookmark(tree, MIST, DORA, status=State.BLOCKED, error="an image cannot be read")
    return tree


def test_people_read_what_calls_for_attention(several: StudyTree) -> None:
    text = text_of(status_of(several))

    assert "2 complete, 4 waiting, 1 interrupted, 1 stale, 1 broken, 2 failed, 1 blocked" in text.splitlines()
    assert "no images of anybody: none__noisy_upscaling" in text.splitlines()
    assert after(text, "uploads owed (1)") == [f"  {ORIGINAL}/{DORA}: the Hub is away"]
    assert after(text, "waiting checkpoints (1)") == [f"  {MIST}/{CLARA}: resumes at step 27 of 60"]
    log = f"    log: {output_dir(several, MIST, ANNA) / 'train.log'}"
    assert after(text, "failed (2)") == ["  it burned", f"    {MIST}/{ANNA}", f"    {MIST}/{BORIS}", log]
    assert after(text, "blocked (1)") == ["  an image cannot be read", f"    {MIST}/{DORA}"]
    assert after(text, "interrupted (1)") == ["  stopped", f"    {MIST}/{CLARA}"]
    assert after(text, "stale (1)")[0].endswith("learning_rate 0.0001 -> 0.5")
    reason, name = after(text, "broken (1)")
    assert WEIGHTS in reason and str(several.data_root) not in reason
    assert name == f"    {ORIGINAL}/{BORIS}"


def test_several_recipes_are_told(several: StudyTree) -> None:
    hashes = [
        recipe_hash(asked_for(rate).recipe or {})[:12]
        for rate in (CONFIG, replace(CONFIG, learning_rate=0.5))
    ]

    assert after(text_of(status_of(several)), f"{PLAIN} has 2 recipes") == [
        f"  3 adapters (none__none 3), {hashes[0]}",
        f"  1 adapters (none__none 1), {hashes[1]}: learning_rate 0.0001 -> 0.5",
    ]


def test_evaluations_that_must_not_be_compared_are_told(tree: StudyTree) -> None:
    for artist, timesteps in ((ANNA, [500.0]), (BORIS, [500.0]), (CLARA, [250.0, 750.0])):
        loss = {"start": 1.0, "end": 0.5, "on": "in-sample", "timesteps": timesteps}
        put_adapter(tree, artist=artist, eval_loss=loss)

    text = text_of(status_of(tree))

    (line,) = (line for line in text.splitlines() if "must not be compared" in line)
    assert line.startswith(f"{PLAIN}: ")
    assert "none__none 2" in line and "none__none 1" in line


def test_long_lists_are_cut_without_verbose(tree: StudyTree) -> None:
    for number, artist in enumerate(EVERYBODY):
        put_record(output_dir(tree, ORIGINAL, artist), status="failed", error="it burned")
        put_record(output_dir(tree, MIST, artist), status="failed", error=f"fault {number}")
        put_bookmark(tree, COUNTERED, artist, status=State.FAILED, error=f"odd {number}")
    status = status_of(tree)

    short, whole = text_of(status), text_of(status, verbose=True)

    assert "    and 1 more, shown by -v" in after(short, "failed (12)")
    assert after(short, "failed (12)")[-1] == "  and 4 other reasons, shown by -v"
    assert "shown by -v" not in whole
    assert all(f"  odd {number}" in whole for number in range(4))


def test_who_works_where_is_told(tree: StudyTree) -> None:
    put_all(tree, ORIGINAL, artists=(BORIS,))
    folder = put_record(output_dir(tree), status="running", options={"max_train_steps": 60})
    (folder / "metrics.jsonl").write_text('{"step": 15, "loss": 1.0}\n')

    with Claim.take_anew(folder), Claim.take_anew(output_dir(tree, artist=BORIS)):
        status = status_of(tree)
        text = text_of(status)
        cells = status_json(status)["cells"]

    anna, boris = after(text, "at work (2)")
    assert anna.startswith(f"  {ORIGINAL}/{ANNA} on ") and anna.endswith("at step 15 of 60")
    assert boris.startswith(f"  {ORIGINAL}/{BORIS} on ") and boris.endswith("(complete)")
    (running,) = (cell for cell in cells if cell["state"] == "running")
    assert (running["artist"], running["steps"]) == (ANNA.name, 15)
    assert running["host"] and running["since"]


def test_the_time_left_says_what_it_is_based_on(tree: StudyTree) -> None:
    assert "time left" not in text_of(status_of(tree))
    put_adapter(tree, seconds=7500.0)

    assert (
        "time left: about 22 h 55 min with one at a time (none runs now); the last one took 2 h 5 min"
        in text_of(status_of(tree)).splitlines()
    )


def test_each_series_has_a_table(tree: StudyTree) -> None:
    adapter = AdapterId(PLAIN, ORIGINAL, ANNA, "seed-43")
    write_adapter(tree.adapter_dir(adapter), original(tree), replace(CONFIG, seed=43))
    put_record(tree.adapter_dir(replace(adapter, artist=BORIS)), status="failed", error="it burned")

    text = text_of(status_of(tree, series=(PLAIN, adapter.series)))

    assert [line for line in text.splitlines() if line.startswith(PLAIN)] == [PLAIN, adapter.series]
    assert text.count("condition  ") == 2
    assert f"    {adapter.series}/{ORIGINAL}/{BORIS}" in after(text, "failed (1)")


def test_programs_read_every_cell(several: StudyTree) -> None:
    value = json.loads(json.dumps(status_json(status_of(several))))

    assert value.keys() == {"data_root", "cells", "counts", "recipes"}
    assert value["counts"] == {
        "complete": 2,
        "waiting": 4,
        "interrupted": 1,
        "stale": 1,
        "broken": 1,
        "failed": 2,
        "blocked": 1,
        "no data": 4,
    }
    assert len(value["cells"]) == 16
    (clara,) = (
        cell
        for cell in value["cells"]
        if (cell["protection"], cell["countermeasure"], cell["artist"]) == ("mist", "none", CLARA.name)
    )
    assert clara == {
        "key": f"hf_diffusers/mist/none/{CLARA}",
        "step_count": 60,
        "variant": None,
        "protection": "mist",
        "countermeasure": "none",
        "split": "historical",
        "style": "cubism",
        "artist": "Clara_Dunn",
        "state": "interrupted",
        "reason": "stopped",
        "steps": None,
        "recipe_hash": None,
        "seed": None,
        "eval_loss": None,
        "finished_at": None,
        "seconds": None,
        "host": None,
        "since": None,
        "checkpoint": 27,
        "upload_owed": None,
        "log": f"models/lora/{PLAIN}/{MIST}/{CLARA}/train.log",
        "job_log": None,
    }
    (dora,) = (cell for cell in value["cells"] if cell["upload_owed"])
    assert (dora["state"], dora["steps"], dora["seed"]) == ("complete", CONFIG.max_train_steps, CONFIG.seed)
    assert dora["recipe_hash"] == recipe_hash(asked_for().recipe or {})
    most, other = value["recipes"][PLAIN]
    assert (most["adapters"], most["conditions"], most["differs_in"]) == (3, {"none__none": 3}, [])
    assert (other["adapters"], other["differs_in"]) == (1, ["learning_rate 0.0001 -> 0.5"])
    assert most["recipe_hash"] == dora["recipe_hash"]


def test_a_study_without_adapters_is_read(tree: StudyTree) -> None:
    shutil.rmtree(tree.protected_art)
    shutil.rmtree(tree.robust_samples)

    assert status_json(status_of(tree))["counts"] == {"waiting": 4}


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
    assert time_left([cell(State.WAITING)], NOW) is None
    assert time_left([done(100.0), cell(State.BLOCKED), cell(State.STALE), cell(State.NO_DATA)], NOW) is None


def test_what_is_to_be_trained_takes_the_median_of_the_last_ones() -> None:
    old = [done(9000.0, finished_at=f"2025-01-02T00:00:{second:02}") for second in range(30)]
    new = [done(seconds, finished_at="2026-01-02") for seconds in (100.0, 200.0, 600.0) * 7]
    todo = [cell(state) for state in (State.WAITING, State.FAILED, State.BROKEN, State.INTERRUPTED)]

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

    left = time_left([done(100.0), *running, *[cell(State.WAITING)] * 3], NOW)

    assert left is not None
    assert (left.seconds, left.workers) == ((2 * 50 + 3 * 100) / 2, 2)


def test_many_workers_do_not_hasten_the_last_training() -> None:
    running = [at_work("2026-01-02T03:58:20+00:00") for _ in range(8)]

    left = time_left([done(100.0), *running, cell(State.WAITING)], NOW)

    assert left is not None
    assert left.seconds == 100.0


def test_each_series_has_its_own_time() -> None:
    cells = [
        *[done(100.0)] * 3,
        done(900.0, variant="rank-32"),
        cell(State.WAITING),
        cell(State.WAITING, variant="rank-32"),
        cell(State.WAITING, variant="seed-43"),
    ]

    left = time_left(cells, NOW)

    assert left is not None
    assert left.seconds == 100.0 + 900.0 + 100.0


@pytest.mark.parametrize("since", ["yesterday", "2026-01-02T03:00:00"])
def test_a_time_that_cannot_be_read_is_not_taken_off(since: str) -> None:
    left = time_left([done(100.0), at_work(since)], NOW)

    assert left is not None
    assert left.seconds == 100.0
