"""Runs that are stopped, and how their ends are compared with that of one that was not."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.processes import Interrupted, stop_signals_raise
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.studio import Studio, training_run

STEPS = 6
RUN = (f"--max_train_steps={STEPS}", "--gradient_accumulation_steps=2", "--random_flip")
WEIGHTS = "pytorch_lora_weights.safetensors"


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics without what no two runs have in common."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "peak_memory_bytes")} for line in lines]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "set_aside")


def assert_same_end(folder: Path, whole: Path) -> None:
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert metrics(folder) == metrics(whole)
    ours, theirs = training_run(folder), training_run(whole)
    for key in ("draws_sha256", "final_loss", "mean_loss", "steps", "status", "loss_spikes", "recipe_hash"):
        assert ours[key] == theirs[key], key
    assert names(folder) == names(whole)


def stopped(studio: Studio, folder: Path, after: int, *flags: str, micro_step: int = 1) -> None:
    """Train until a stop signal comes in a micro-step of the optimizer step after step `after`."""
    make_batch = BatchSource.make

    def stop_at(batches: BatchSource, first: int) -> ForwardBatch:
        if first == 2 * after + micro_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(batches, first)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), stop_signals_raise():
        patch.setattr(BatchSource, "make", stop_at)
        train(studio, folder, *RUN, *flags)
    run = training_run(folder)
    assert (run["status"], run["steps"]) == ("interrupted", after)
    assert run["error"] == "stopped by SIGTERM", run["error"]
    assert not (folder / WEIGHTS).exists()
