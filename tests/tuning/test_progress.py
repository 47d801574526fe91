"""What a person sees: bars in a terminal, a line a minute elsewhere."""

import io
import sys

import pytest

from mimicry.tuning.progress import BatchDisplay, StepDisplay, duration, eval_change, is_terminal


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


class TestWithoutATerminal:
    def test_a_line_a_minute(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("mimicry.tuning.progress.time.monotonic", lambda: now[0])
        steps = StepDisplay("Claude_Monet", 500)
        for step in range(1, 13):
            now[0] += 15
            steps.step({"step": step, "eval_loss": 0.75})
            steps.step({"step": step, "loss": 0.25})
        steps.close()
        captured = capsys.readouterr()
        assert captured.out == (
            "Claude_Monet: step 4/500, loss 0.2500\n"
            "Claude_Monet: step 8/500, loss 0.2500\n"
            "Claude_Monet: step 12/500, loss 0.2500\n"
        )
        assert captured.err == ""

    def test_a_batch_says_its_lines_and_nothing_else(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert not is_terminal()
        batch = BatchDisplay(2, 10)
        batch.say("first")
        batch.step(5)
        batch.advance()
        batch.close()
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("first\n", "")


class TestInATerminal:
    def test_a_resumed_run_does_not_count_the_steps_of_the_run_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_terminal(monkeypatch)
        steps = StepDisplay("Claude_Monet", 500)
        batch = BatchDisplay(3, 500)
        assert steps.bar is not None
        assert batch.bar is not None
        for step in (401, 402):
            steps.step({"step": step, "loss": 0.5})
            batch.step(step)
        assert (steps.bar.initial, steps.bar.n) == (400, 402)
        assert (batch.bar.initial, batch.bar.n) == (400, 402)
        batch.advance()
        batch.step(1)
        assert (batch.bar.initial, batch.bar.n) == (400, 501)
        batch.advance()
        batch.step(11)
        assert (batch.bar.initial, batch.bar.n) == (410, 1011)
        steps.close()
        batch.close()

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

    def test_a_batch_counts_steps_of_all_artists(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        terminal = as_terminal(monkeypatch)
        batch = BatchDisplay(2, 10)
        bar = batch.bar
        assert bar is not None
        batch.step(5)
        assert (bar.n, bar.total) == (5, 20)
        batch.advance()
        assert bar.n == 10
        # An artist that failed at its third step is done all the same.
        batch.step(3)
        batch.advance()
        assert (bar.n, bar.desc) == (20, "artists 2/2")
        batch.say("a line")
        batch.close()
        assert capsys.readouterr().out == "a line\n"
        assert "artists 2/2" in terminal.getvalue()

    def test_nothing_to_train_shows_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = as_terminal(monkeypatch)
        batch = BatchDisplay(0, 10)
        batch.advance()
        batch.close()
        assert terminal.getvalue() == ""
