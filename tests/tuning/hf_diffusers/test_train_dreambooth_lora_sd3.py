"""The trainer as a program: same bytes, stop signals, the loss of its parent, and its exit codes."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def metrics(output_dir: Path, key: str) -> list[Any]:
    return [json.loads(line)[key] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_stopped_thrice_and_resumed_is_the_same_bytes(studio: Studio, tmp_path: Path) -> None:
    """By a signal, by the loss of the parent, and by a kill that leaves no time for anything."""
    out, log, steps, taken = tmp_path / "out", tmp_path / "log", 100, 0
    flags = (f"--max_train_steps={steps}", "--random_flip", "--checkpointing_steps=5")
    whole = run(TRAINER, studio.words(tmp_path / "whole", *flags), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr

    resumed_from: list[int | None] = []
    for number, how in enumerate((signal.SIGTERM, None, signal.SIGKILL)):
        cached = ("--cache_latents",) if number % 2 else ()
        process = start(TRAINER, studio.words(out, *flags, *cached), tmp_path, log, MIMICRY_PARENT_PIPE="1")
        try:
            await_step(process, out, log, count=taken + 7)
            if how is None:
                assert process.stdin is not None
                process.stdin.close()
            else:
                process.send_signal(how)
            assert process.wait(DEADLINE_SECONDS) != 0
        finally:
            end(process)
        record = training_run(out)
        assert record["status"] == ("running" if how is signal.SIGKILL else "interrupted")
        resumed_from.append(record["resumed_from"])
        taken = len(metrics(out, "step"))
    assert resumed_from[0] is None
    assert 0 < (resumed_from[1] or 0) < (resumed_from[2] or 0) < steps

    outcome = run(TRAINER, studio.words(out, *flags, "--cache_latents"), cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    ours, theirs = training_run(out), training_run(tmp_path / "whole")
    for key in ("draws_sha256", "final_loss", "mean_loss", "steps", "loss_spikes", "warnings"):
        assert ours[key] == theirs[key], key
    for key in ("step", "loss", "lr", "grad_norm"):
        assert metrics(out, key) == metrics(tmp_path / "whole", key)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


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
