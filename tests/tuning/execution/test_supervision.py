"""Following a training: whole lines only, files that are cut back, and the end of patience."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import TrainingFailed
from mimicry.common.processes import running_child
from mimicry.tuning.execution import supervision
from mimicry.tuning.execution.supervision import MetricsReader, StallGuard, follow


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


class TestMetricsReader:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "metrics.jsonl"

    def test_a_file_that_comes_later(self, path: Path) -> None:
        reader = MetricsReader(path)
        assert reader.new_lines() == []
        append(path, '{"step": 1}\n{"step": 2}\n')
        assert reader.new_lines() == [{"step": 1}, {"step": 2}]
        assert reader.new_lines() == []

    def test_old_lines_are_passed_over(self, path: Path) -> None:
        append(path, '{"step": 1}\n')
        reader = MetricsReader(path)
        assert reader.new_lines() == []
        append(path, '{"step": 2}\n')
        assert reader.new_lines() == [{"step": 2}]

    def test_every_split_of_the_lines(self, path: Path) -> None:
        """A line is reported once, when its newline is there, wherever the writer was interrupted."""
        text = "".join(json.dumps({"step": step, "note": "é"}, ensure_ascii=False) + "\n" for step in (1, 2))
        content = text.encode()
        for cut in range(len(content) + 1):
            path.unlink(missing_ok=True)
            reader = MetricsReader(path)
            path.write_bytes(content[:cut])
            first = reader.new_lines()
            assert len(first) == content[:cut].count(b"\n")
            path.write_bytes(content)
            assert [line["step"] for line in first + reader.new_lines()] == [1, 2]

    def test_a_file_that_was_cut_back_is_read_again(self, path: Path) -> None:
        """As when the trainer begins anew where an interrupted run has left its lines, the last one torn."""
        append(path, '{"step": 1}\n{"step": 2}\n{"st')
        reader = MetricsReader(path)
        path.write_bytes(b"")
        assert reader.new_lines() == []
        append(path, '{"step": 1}\n')
        assert reader.new_lines() == [{"step": 1}]
        path.unlink()
        assert reader.new_lines() == []
        append(path, '{"step": 7}\n')
        assert reader.new_lines() == [{"step": 7}]

    def test_lines_that_a_resumed_run_keeps_are_passed_over(self, path: Path) -> None:
        """As when the trainer goes on from the checkpoint of step 2."""
        append(path, '{"step": 1, "seconds": 0.5}\n{"step": 2}\n{"step": 3}\n{"st')
        reader = MetricsReader(path)
        path.write_bytes(b'{"step": 1, "seconds": 0.5}\n{"step": 2}\n')
        assert reader.new_lines() == []
        append(path, '{"step": 3}\n')
        assert reader.new_lines() == [{"step": 3}]
        # And once more, when all of its lines were seen to come.
        path.write_bytes(b'{"step": 1, "seconds": 0.5}\n')
        assert reader.new_lines() == []
        append(path, '{"step": 2}\n')
        assert reader.new_lines() == [{"step": 2}]

    def test_lines_that_a_new_run_wrote_meanwhile_are_read(self, path: Path) -> None:
        append(path, '{"step": 1, "seconds": 0.5}\n{"step": 2}\n')
        reader = MetricsReader(path)
        path.write_bytes(b'{"step": 1, "seconds": 0.6}\n')
        assert reader.new_lines() == [{"step": 1, "seconds": 0.6}]

    def test_a_file_that_was_cut_back_and_has_grown_again_between_two_looks(self, path: Path) -> None:
        """As when nobody saw that a job was stopped and went on: the rest of a line is passed over."""
        whole = b'{"step": 1}\n{"step": 2, "seconds": 0.25}\n{"step": 3, "seconds": 17}\n{"step": 4}\n'
        for size in range(1, len(whole)):
            path.write_bytes(whole[:size])
            reader = MetricsReader(path)
            path.write_bytes(whole)
            begins_a_line = whole[size - 1 : size] == b"\n"
            left = whole[size:] if begins_a_line else whole[size:].partition(b"\n")[2]
            assert reader.new_lines() == list(map(json.loads, left.splitlines()))

    def test_a_loss_that_is_no_number(self, path: Path) -> None:
        reader = MetricsReader(path)
        append(path, '{"loss": NaN}\n')
        (line,) = reader.new_lines()
        assert line["loss"] != line["loss"]


class TestStallGuard:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
        now = [1000.0]
        monkeypatch.setattr("mimicry.tuning.execution.supervision.time.monotonic", lambda: now[0])

        def advance(seconds: float) -> None:
            now[0] += seconds

        return advance

    def test_steps_are_signs_of_life(self, clock: Callable[[float], None], tmp_path: Path) -> None:
        guard = StallGuard(tmp_path / "log", 60)
        for _ in range(5):
            clock(59)
            guard.check(stepped=True)
        clock(60)
        guard.check(stepped=False)
        clock(1)
        with pytest.raises(TrainingFailed, match=r"no step for 1 minutes.*--stall-minutes"):
            guard.check(stepped=False)

    def test_before_the_first_step_a_growing_log_will_do(
        self, clock: Callable[[float], None], tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        guard = StallGuard(log, 60)
        for _ in range(5):
            append(log, "downloading\n")
            clock(59)
            guard.check(stepped=False)
        clock(61)
        with pytest.raises(TrainingFailed):
            guard.check(stepped=False)

    def test_after_the_first_step_it_will_not(self, clock: Callable[[float], None], tmp_path: Path) -> None:
        log = tmp_path / "log"
        guard = StallGuard(log, 60)
        guard.check(stepped=True)
        for _ in range(2):
            append(log, "retrying for ever\n")
            clock(30)
            guard.check(stepped=False)
        append(log, "retrying for ever\n")
        clock(1)
        with pytest.raises(TrainingFailed):
            guard.check(stepped=False)

    def test_silence_from_the_start(self, clock: Callable[[float], None], tmp_path: Path) -> None:
        guard = StallGuard(tmp_path / "log", 90)
        guard.check(stepped=False)
        clock(91)
        with pytest.raises(TrainingFailed, match=r"no step for 1\.5 minutes"):
            guard.check(stepped=False)


class TestFollow:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervision, "POLL_SECONDS", 0.01)

    def test_lines_then_exit_code(self, tmp_path: Path) -> None:
        """The lines written in the last moment before the end are told too."""
        metrics = tmp_path / "metrics.jsonl"
        code = (
            "import json, sys\n"
            "for step in range(1, 51):\n"
            "    with open(sys.argv[1], 'a') as file: file.write(json.dumps({'step': step}) + '\\n')\n"
            "sys.exit(4)\n"
        )
        seen: list[dict[str, Any]] = []
        words = [sys.executable, "-S", "-c", code, str(metrics)]
        reader = MetricsReader(metrics)
        with running_child(words, output=None, environment=os.environ, grace_seconds=1) as child:
            assert follow(child, reader, seen.append) == 4
        assert [line["step"] for line in seen] == list(range(1, 51))

    def test_a_stall_ends_it(self, tmp_path: Path) -> None:
        words = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
        with (
            pytest.raises(TrainingFailed),
            running_child(words, output=None, environment=os.environ, grace_seconds=20) as child,
        ):
            guard = StallGuard(tmp_path / "log", 0.05)
            follow(child, MetricsReader(tmp_path / "m"), lambda line: None, guard)
        assert child.wait(0) is not None
