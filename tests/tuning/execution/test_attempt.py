"""How an attempt ended, told from what it left and not from its exit code."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import TrainingFailed
from mimicry.common.files import write_json
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.execution.attempt import Attempt
from tests.hostile_names import over_hostile_names
from tests.tuning.lora_files import files_in, save_lora


def log(folder: Path, text: str) -> None:
    with (folder / TRAIN_LOG).open("a") as file:
        file.write(text)


def finish(folder: Path, **run: Any) -> None:
    source = save_lora(folder.parent / "saved")
    AdapterFolder(folder).publish(source, {"status": "complete", **run}, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@over_hostile_names
def test_a_new_folder(hostile_name: str, tmp_path: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(tmp_path / "a" / hostile_name))
    assert attempt.failure(1) == "exit code 1 and no adapter"
    finish(tmp_path / "a" / hostile_name)
    assert attempt.failure(1) is None


@pytest.mark.parametrize("code", [0, 1, -9])
def test_a_verified_adapter_counts_whatever_the_exit_code(folder: Path, code: int) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    finish(folder)
    assert attempt.failure(code) is None


def test_exit_code_zero_without_an_adapter_is_a_failure(folder: Path) -> None:
    assert Attempt.begin(AdapterFolder(folder)).failure(0) == "exit code 0 and no adapter"


def test_a_broken_adapter_is_set_aside(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    log(folder, "trained\n")
    finish(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1])
    failure = attempt.failure(0)
    assert failure is not None
    assert WEIGHTS in failure
    assert not (folder / WEIGHTS).exists()
    assert not (folder / TRAINING_RUN).exists()
    (aside,) = (folder / "set_aside").iterdir()
    assert aside.name.endswith("-broken")
    assert (aside / WEIGHTS).read_bytes() == content[:-1]
    assert TRAIN_LOG in files_in(folder)


def test_the_record_says_why(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    log(folder, "error: something else\n")
    write_json(folder / TRAINING_RUN, {"status": "failed", "error": "loss is not finite at step 3"})
    assert attempt.failure(1) == "loss is not finite at step 3"


def test_a_record_of_an_earlier_run_does_not_count(folder: Path) -> None:
    folder.mkdir()
    write_json(folder / TRAINING_RUN, {"error": "an older fault"})
    hour_ago = (folder / TRAINING_RUN).stat().st_mtime - 3600
    os.utime(folder / TRAINING_RUN, (hour_ago, hour_ago))
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.failure(1) == "exit code 1 and no adapter"
    write_json(folder / TRAINING_RUN, {"error": "a new fault"})
    assert attempt.failure(1) == "a new fault"


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_an_unreadable_record_is_no_traceback(folder: Path, text: str) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    (folder / TRAINING_RUN).write_text(text)
    assert attempt.failure(7) == "exit code 7 and no adapter"


def test_the_log_of_this_attempt_only(folder: Path) -> None:
    folder.mkdir()
    log(folder, "error: of an earlier attempt\n")
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.log_lines(5) == []
    assert attempt.failure(1) == "exit code 1 and no adapter"
    log(folder, "Traceback\nKeyError: 'x'\n\n")
    assert attempt.failure(1) == "exit code 1 and no adapter: KeyError: 'x'"
    log(folder, "error: first\nerror: second\nlauncher's traceback\n")
    assert attempt.failure(1) == "second"
    assert attempt.log_lines(2) == ["error: second", "launcher's traceback"]


def test_a_file_where_the_folder_belongs_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "adapter").touch()

    with pytest.raises(TrainingFailed, match="adapter cannot be made: File exists"):
        Attempt.begin(AdapterFolder(tmp_path / "adapter"))


def test_a_trainer_that_had_no_time_to_say_why(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    write_json(folder / TRAINING_RUN, {"status": "running", "steps": 3})
    assert "was killed and had no time to say why" in str(attempt.failure(1))
    assert attempt.stopped_by() is None
    assert attempt.steps() == 3


def test_a_trainer_that_was_stopped(folder: Path) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.stopped_by() is None
    write_json(folder / TRAINING_RUN, {"status": "interrupted", "error": "stopped by SIGHUP"})
    assert attempt.failure(1) == "stopped by SIGHUP"
    assert attempt.stopped_by() == signal.SIGHUP


def test_one_that_was_stopped_before_it_began_a_record(folder: Path) -> None:
    folder.mkdir()
    log(folder, "stopped by SIGHUP\n")
    attempt = Attempt.begin(AdapterFolder(folder))
    assert attempt.stopped_by() is None
    log(folder, "reading\nstopped by SIGTERM\n\n")
    assert attempt.failure(1) == "stopped by SIGTERM"
    assert attempt.stopped_by() == signal.SIGTERM
    log(folder, "stopped by hand\n")
    assert attempt.stopped_by() is None


def test_one_that_was_stopped_for_a_reason(folder: Path) -> None:
    """Who watches over a training that hangs ends it by a signal, which the trainer takes for the reason."""
    attempt = Attempt.begin(AdapterFolder(folder))
    log(folder, "stopped by SIGTERM\nerror: no step for 30 minutes; see the log\n")
    write_json(folder / TRAINING_RUN, {"status": "interrupted", "error": "stopped by SIGTERM"})
    assert attempt.failure(1) == "no step for 30 minutes; see the log"
    assert attempt.stopped_by() is None


def test_a_full_disk_on_which_nothing_could_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempt.begin(AdapterFolder(folder))
    write_json(folder / TRAINING_RUN, {"status": "running"})
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    assert f"the disk of {folder} is full" in str(attempt.failure(1))
