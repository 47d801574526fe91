"""The trainer as a program: same bytes, stop signals, the loss of its parent, and its exit codes."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tuning.hf_diffusers.conftest import Tuned
from tests.tuning.hf_diffusers.studio import (
    DEADLINE_SECONDS,
    SECRET,
    TRAINER,
    Studio,
    await_step,
    end,
    environment,
    run,
    start,
    training_run,
)

WEIGHTS = "pytorch_lora_weights.safetensors"
ENDLESS = ("--max_train_steps=20000", "--center_crop")


@pytest.fixture
def endless(studio: Studio, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A trainer in the midst of its steps, with a pipe from its parent."""
    log = tmp_path / "log"
    words = studio.words(tmp_path / "out", *ENDLESS)
    process = start(TRAINER, words, tmp_path, log, MIMICRY_PARENT_PIPE="1")
    try:
        await_step(process, tmp_path / "out", log)
        yield process
    finally:
        end(process)


def assert_stopped(process: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    code = process.wait(DEADLINE_SECONDS)
    log = (folder / "log").read_text()
    assert code == 128 + signal.Signals[name]
    assert log.rstrip().endswith(f"stopped by {name}")
    assert "Traceback" not in log
    run = training_run(folder / "out")
    assert (run["status"], run["error"]) == ("interrupted", f"stopped by {name}")
    assert 0 < run["steps"] < 20000
    assert not (folder / "out" / WEIGHTS).exists()


def test_the_same_artist_twice_is_the_same_bytes(studio: Studio, tuned: Tuned, tmp_path: Path) -> None:
    """Once through wrapper and launcher, once by hand, with other hashes in the interpreter."""
    assert tuned.outcome.returncode == 0, tuned.outcome.stderr
    known = training_run(tuned.output_dir)
    words = [
        word for word in known["command"][1:] if not word.startswith(("--instance_data_dir", "--output_dir"))
    ]
    outcome = run(
        TRAINER,
        [*words, f"--instance_data_dir={studio.images}", f"--output_dir={tmp_path / 'out'}"],
        cwd=tmp_path,
        env=environment(PYTHONHASHSEED="2"),
    )
    assert outcome.returncode == 0, outcome.stderr
    for name in (WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tuned.output_dir / name).read_bytes()
    again = training_run(tmp_path / "out")
    for key in ("recipe", "recipe_hash", "draws_sha256", "final_loss", "mean_loss", "images", "weights"):
        assert again[key] == known[key], key
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in outcome.stdout + outcome.stderr


def test_a_stop_signal_is_recorded(endless: subprocess.Popen[bytes], tmp_path: Path) -> None:
    endless.send_signal(signal.SIGTERM)
    assert_stopped(endless, tmp_path, "SIGTERM")


def test_it_ends_when_its_parent_is_gone(endless: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert endless.stdin is not None
    endless.stdin.close()
    assert_stopped(endless, tmp_path, "SIGTERM")


def test_all_problems_of_the_command_line_come_at_once(studio: Studio, tmp_path: Path) -> None:
    outcome = run(
        TRAINER,
        [
            "--rank",
            "0",
            "--resolution=x",
            "--hub-token",
            SECRET,
            "--leaning-rate=2",
            f"--output-dir={tmp_path}/out",
        ],
        cwd=tmp_path,
    )
    assert outcome.returncode == 2
    errors = outcome.stderr.splitlines()
    assert len(errors) == 5, outcome.stderr
    assert all(line.startswith("error: --") for line in errors)
    assert SECRET not in outcome.stdout + outcome.stderr
    assert list(tmp_path.iterdir()) == []
