"""What a person sees: bars in a terminal, a few lines elsewhere."""

import io
import re
import sys

import pytest

from mimicry.tuning.planning.display import BatchDisplay, StepDisplay, duration, eval_change, is_terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal; no fixture, since pytest sets it anew before each test's body."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0:00"),
        (59.4, "0:59"),
        (59.5, "1:00"),
        (61, "1:01"),
        (3599.6, "1:00:00"),
        (3661, "1:01:01"),
        (360_000, "100:00:00"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"start": 1.2341, "end": 1.2006, "images": 20, "timesteps": [1.0]}, "eval 1.234 -> 1.201"),
        ({"start": 1.2341, "end": 1.2006, "on": "in-sample"}, "eval 1.234 -> 1.201 (in-sample)"),
        ({"start": 1.5, "end": None}, ""),
        ({"skipped": "no folder"}, ""),
        ({"start": "1", "end": "2"}, ""),
        (None, ""),
        ([1, 2], ""),
        (0.5, ""),
    ],
)
def test_eval_change(value: object, words: str) -> None:
    assert eval_change(value) == words


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the clock tells it; tests let it go on."""
    clock = [0.0]
    monkeypatch.setattr("mimicry.tuning.planning.display.time.monotonic", lambda: clock[0])
    return clock


class TestWithoutATerminal:
    def test_a_line_for_each_twentieth_of_the_steps(
        self, capsys: pytest.CaptureFixture[str], now: list[float]
    ) -> None:
        steps = StepDisplay("Claude_Monet", 500)
        steps.phase("reading the transformer")
        for step in range(1, 76):
            now[0] += 2
            steps.step({"step": step, "eval_loss": 0.75})
            steps.step({"step": step, "loss": 0.25})
        steps.close()
        captured = capsys.readouterr()
        lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in captured.out.splitlines()]
        assert lines == [
            "Claude_Monet: step 25/500, loss 0.2500, 15:50 left",
            "Claude_Monet: step 50/500, loss 0.2500, 15:00 left",
            "Claude_Monet: step 75/500, loss 0.2500, 14:10 left",
        ]
        assert captured.err == ""

    def test_quick_steps_make_few_lines(self, capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
        steps = StepDisplay("Claude_Monet", 20)
        for step in range(1, 21):
            now[0] += 1
            steps.step({"step": step, "loss": 0.25})
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[3] for line in lines] == ["5/20,", "10/20,", "15/20,", "20/20,"]

    def test_a_batch_says_its_lines_and_nothing_else(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert not is_terminal()
        batch = BatchDisplay([10, 10])
        batch.say("first")
        batch.begin("a", 10)
        batch.step("a", 5)
        batch.end("a", well=True)
        batch.close()
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("first\n", "")


class TestTimeLeft:
    def test_nothing_tells_it_before_the_first_step(self, now: list[float]) -> None:
        batch = BatchDisplay([100] * 4)
        batch.begin("a", 100)
        assert batch.seconds_left() is None
        assert batch.time_left() == ""

    def test_the_steps_of_the_first_training_do(self, now: list[float]) -> None:
        batch = BatchDisplay([100] * 4)
        batch.begin("a", 100)
        batch.step("a", 0)
        now[0] = 30
        batch.step("a", 1)
        assert batch.seconds_left() is None  # most of this was the start
        now[0] = 50
        batch.step("a", 21)
        # It will take 30 seconds and 99 more, as the three others will.
        assert batch.seconds_left() == 79 + 3 * 129

    def test_several_share_what_is_left_but_not_the_last_one(self, now: list[float]) -> None:
        batch = BatchDisplay([100] * 4, known=[100.0], workers=2)
        batch.begin("a", 100)
        batch.begin("b", 100)
        now[0] = 40
        assert batch.seconds_left() == (60 + 60 + 200) / 2
        for key in ("c", "d"):
            batch.end({"c": "a", "d": "b"}[key], well=False)
            batch.begin(key, 100)
        assert batch.seconds_left() == 100
        batch.end("c", well=False)
        now[0] = 50
        assert batch.seconds_left() == 90

    def test_and_then_those_that_ended_well(self, now: list[float]) -> None:
        batch = BatchDisplay([100] * 4, known=[1000.0])
        batch.begin("a", 100)
        assert batch.seconds_left() == 4000
        now[0] = 60
        batch.end("a", well=True)
        assert batch.seconds_left() == 180
        batch.begin("b", 100)
        now[0] = 62
        batch.end("b", well=False)
        assert batch.seconds_left() == 120

    def test_several_at_a_time(self, now: list[float]) -> None:
        batch = BatchDisplay([100] * 4, known=[60.0], workers=2)
        batch.begin("a", 100)
        batch.begin("b", 100)
        now[0] = 20
        assert batch.seconds_left() == (40 + 40 + 60 + 60) / 2

    def test_one_that_takes_longer_than_expected_is_about_to_end(self, now: list[float]) -> None:
        batch = BatchDisplay([100], known=[60.0])
        batch.begin("a", 100)
        now[0] = 90
        assert batch.time_left() == "about 0:00 left"


class TestInATerminal:
    def test_what_comes_before_the_first_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = as_terminal(monkeypatch)
        steps = StepDisplay("Claude_Monet", 500)
        assert "Claude_Monet: starting [00:00]" in terminal.getvalue()
        steps.phase("reading the transformer")
        steps.tick()
        assert "Claude_Monet: reading the transformer [00:00]" in terminal.getvalue()
        steps.step({"step": 1, "loss": 0.5})
        steps.phase("too late")
        assert steps.bar is not None
        assert steps.bar.desc == "Claude_Monet"
        assert "too late" not in terminal.getvalue()
        steps.close()

    def test_a_resumed_run_does_not_count_the_steps_of_the_run_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_terminal(monkeypatch)
        steps = StepDisplay("Claude_Monet", 500)
        assert steps.bar is not None
        for step in (401, 402):
            steps.step({"step": step, "loss": 0.5})
        assert (steps.bar.initial, steps.bar.n) == (400, 402)
        steps.close()

    def test_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = as_terminal(monkeypatch)
        assert is_terminal()
        steps = StepDisplay("Claude_Monet", 4)
        for step in (1, 3):
            steps.step({"step": step, "loss": float("nan") if step == 1 else 0.5})
            steps.step({"step": step, "eval_loss": 0.75})
        assert steps.bar is not None
        assert steps.bar.n == 3
        steps.close()
        assert "Claude_Monet" in terminal.getvalue()
        assert "/4" in terminal.getvalue()

    def test_a_batch_counts_the_steps_of_all_trainings(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        terminal = as_terminal(monkeypatch)
        batch = BatchDisplay([10, 30])
        bar = batch.bar
        assert bar is not None
        batch.begin("a", 10)
        batch.step("a", 5)
        assert (bar.n, bar.total) == (5, 40)
        batch.end("a", well=True)
        assert bar.n == 10
        # One that failed at its third step is done all the same.
        batch.begin("b", 30)
        batch.step("b", 3)
        batch.end("b", well=False)
        assert (bar.n, bar.desc) == (40, "trainings 2/2")
        batch.say("a line")
        batch.close()
        assert capsys.readouterr().out == "a line\n"
        assert "trainings 2/2" in terminal.getvalue()

    def test_one_that_stopped_and_may_begin_again_is_not_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        as_terminal(monkeypatch)
        batch = BatchDisplay([10, 30])
        bar = batch.bar
        assert bar is not None
        batch.begin("a", 10)
        batch.step("a", 5)
        batch.leave("a")
        assert (bar.n, bar.desc) == (0, "trainings 0/2")
        batch.begin("a", 10)
        batch.end("a", well=True)
        assert (bar.n, bar.desc) == (10, "trainings 1/2")
        batch.close()

    def test_nothing_to_train_shows_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = as_terminal(monkeypatch)
        batch = BatchDisplay([])
        batch.close()
        assert terminal.getvalue() == ""
