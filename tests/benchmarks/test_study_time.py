"""The model of a study's time, where its result is known without it."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import study_time
from benchmarks.study_model import HOUR, Outcome, Setting, Simulation
from mimicry.common.files import read_json


def went(seed: int = 1, **facts: Any) -> Outcome:
    return Simulation(
        Setting(**{"cells": 8, "workers": 4, "training": 600.0, **facts}), random.Random(seed)
    ).run()


def test_without_chance_it_is_the_rounds_that_the_workers_need() -> None:
    found = went(start=50.0, end=10.0, call=5.0)
    assert found.makespan == pytest.approx(5 + 2 * 660)
    assert found.utilisation == pytest.approx(8 * 600 / (4 * 1325))
    assert found.around == pytest.approx(8 * 60)
    assert (found.lost, found.calls) == (0.0, 1)


def test_on_one_machine_the_others_follow_at_the_first_step() -> None:
    assert went(cells=4, start=50.0, first_alone=True).makespan == pytest.approx(50 + 650)


def test_a_queue_delays_jobs_side_by_side() -> None:
    found = went(cells=100, workers=100, queue=1000.0)
    assert 600 + 1000 < found.makespan < 600 + 20 * 1000


def test_a_time_limit_costs_start_ups_and_no_training() -> None:
    # A job of 480 s signals after 300, of which 100 are its start-up: 600 s of training take three jobs.
    found = went(cells=1, workers=1, start=100.0, time_limit=480.0)
    assert (found.time_limits, found.lost) == (2, 0.0)
    assert found.makespan == pytest.approx(600 + 3 * 100)


def test_preemptions_lose_what_came_after_the_last_checkpoint_unless_there_is_notice() -> None:
    facts: dict[str, Any] = {"cells": 300, "preemptions": 24.0, "checkpoint": 200.0, "start": 30.0}
    with_notice, without = went(**facts), went(**facts, notice=False)
    assert with_notice.lost == 0.0
    assert with_notice.trained == pytest.approx(300 * 600)
    assert without.trained == pytest.approx(300 * 600)
    # One comes in an hour of work. It loses 100 s in the mean, as checkpoints are 200 s apart, or nothing.
    each = without.lost / without.preemptions
    assert 75 < each < 105
    assert without.preemptions == pytest.approx(300 * 700 / HOUR, rel=0.3)


def test_what_fails_is_trained_by_the_next_call_from_its_checkpoint() -> None:
    found = went(cells=300, failures=24.0, checkpoint=100.0, call=7.0)
    assert found.calls > 1
    assert found.failures > 20
    assert found.trained == pytest.approx(300 * 600)
    assert 0 < found.lost < 100 * found.failures


def test_trainings_have_the_mean_and_the_spread_that_are_asked_for() -> None:
    found = went(cells=4000, workers=4000, spread=0.2)
    assert found.trained / 4000 == pytest.approx(600, rel=0.02)
    assert found.makespan > 900


def test_the_program_prints_figures_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cells=40", "--gpus=4", "--minutes=6", "--start-up=0", "--end=0", "--studies=3"]
    monkeypatch.setattr(sys, "argv", ["study_time", *words, f"--output={tmp_path / 'out.json'}"])
    assert study_time.main() == 0
    assert "[h]" in capsys.readouterr().out
    figures = read_json(tmp_path / "out.json")["figures"]
    assert figures["from the first call to the last adapter [h]"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus=0"], "it takes 1 or more"),
        (["--minutes=-3"], "it takes 0.001 or more"),
        (["--time-limit=3.5"], "--time-limit 3.5"),
    ],
)
def test_values_that_make_no_study_are_refused(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study_time", *words])
    with pytest.raises(SystemExit):
        study_time.main()
    assert told in capsys.readouterr().err
