"""What may happen to a training from outside: a lost claim, a full disk, a signal before the first step."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline
from safetensors import SafetensorError

from mimicry.common.claims import CLAIM, Claim
from mimicry.common.errors import ClaimedElsewhere, ClaimLost, TrainingFailed, UsageError
from mimicry.tuning.adapters.weights import Adapter
from mimicry.tuning.hf_diffusers.sd3 import stages
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.prompts import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.training import checkpoints
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import RUN, WEIGHTS, names, stopped
from tests.tuning.hf_diffusers.studio import Studio, training_run
from tests.tuning.lora_files import checkpoint_names


def lose_claim(folder: Path) -> None:
    """Let another process have the claim of `folder`."""
    content = json.loads((folder / CLAIM).read_text())
    (folder / CLAIM).write_text(json.dumps({**content, "token": "theirs"}))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class TestClaim:
    def test_where_another_process_works_nothing_is_touched(self, studio: Studio, tmp_path: Path) -> None:
        with Claim.take(tmp_path), pytest.raises(ClaimedElsewhere, match="in use by pid"):
            train(studio, tmp_path, *RUN)
        assert names(tmp_path) == []

    def test_a_training_that_is_refused_leaves_no_folder(self, studio: Studio, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no such folder"):
            train(studio, tmp_path / "style" / "artist", *RUN, "--resume_from_checkpoint=nowhere")
        assert names(tmp_path) == []

    def test_lost_after_the_adapter_was_published_it_is_no_failure(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bytes] = []

        def lose(*_: object) -> None:
            lose_claim(tmp_path)
            seen.append((tmp_path / "training_run.json").read_bytes())

        monkeypatch.setattr(stages, "decode_samples", lose)
        train(studio, tmp_path, *RUN)
        assert seen == [(tmp_path / "training_run.json").read_bytes()]
        assert training_run(tmp_path)["status"] == "complete"

    def test_a_training_that_has_lost_it_writes_no_more(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_batch, seen = BatchSource.make, []

        def lose(batches: BatchSource, first: int) -> ForwardBatch:
            if first == 4:
                lose_claim(tmp_path)
                seen.append(files(tmp_path))
            return make_batch(batches, first)

        monkeypatch.setattr(BatchSource, "make", lose)
        with pytest.raises(ClaimLost, match="is another's"):
            train(studio, tmp_path, *RUN)
        assert seen == [files(tmp_path)]
        assert checkpoint_names(tmp_path) == []

    def test_it_is_looked_at_again_before_the_adapter_is_put_into_its_place(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, seen = Trainer.run, []

        def lose(trainer: Trainer, *arguments: Any) -> None:
            run(trainer, *arguments)
            lose_claim(tmp_path)
            seen.append(files(tmp_path))

        monkeypatch.setattr(Trainer, "run", lose)
        with pytest.raises(ClaimLost):
            train(studio, tmp_path, *RUN)
        assert seen == [files(tmp_path)]
        assert WEIGHTS not in seen[0]


class TestFullDisk:
    def test_in_the_steps(self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_batch = BatchSource.make

        def fill(batches: BatchSource, first: int) -> ForwardBatch:
            if first == 4:
                raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
            return make_batch(batches, first)

        monkeypatch.setattr(BatchSource, "make", fill)
        with pytest.raises(TrainingFailed, match=r"the disk of metrics\.jsonl is full; see `df -h`"):
            train(studio, tmp_path, *RUN)
        run = training_run(tmp_path)
        assert run["status"] == "failed"
        assert "is full" in run["error"]
        assert names(tmp_path) == ["metrics.jsonl", "training_run.json"]

    def test_when_saving_and_the_next_run_goes_on(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> Adapter:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        with monkeypatch.context() as patch:
            patch.setattr(StableDiffusion3Pipeline, "save_lora_weights", full)
            with pytest.raises(TrainingFailed, match="the disk is full"):
                train(studio, tmp_path, *RUN, "--checkpointing_steps=4")
        assert names(tmp_path) == ["checkpoint-4", "metrics.jsonl", "training_run.json"]
        train(studio, tmp_path, *RUN)
        assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()

    def test_a_checkpoint_that_finds_no_room_is_a_warning(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(checkpoints, "save_file", full)
        train(studio, tmp_path, *RUN, "--checkpointing_steps=4")
        (warning,) = training_run(tmp_path)["warnings"]
        assert warning.startswith("checkpoint-4 could not be written: the disk is full")


def test_a_checkpoint_may_be_asked_for_before_the_first_step(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, make_batch, seen = CachedEncoders.encode_all, BatchSource.make, []

    def ask(encoders: CachedEncoders, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return encode(encoders, *arguments)

    def look(batches: BatchSource, first: int) -> ForwardBatch:
        seen.append(checkpoint_names(tmp_path))
        return make_batch(batches, first)

    monkeypatch.setattr(CachedEncoders, "encode_all", ask)
    monkeypatch.setattr(BatchSource, "make", look)
    train(studio, tmp_path, *RUN)
    assert seen[2] == ["checkpoint-1"]


def test_seconds_and_start_are_those_of_all_processes(studio: Studio, tmp_path: Path) -> None:
    stopped(studio, tmp_path, 2)
    facts = json.loads((tmp_path / "checkpoint-2" / "checkpoint.json").read_text())
    facts["seconds"] += 1000
    facts["started_at"] = "2026-01-01T00:00:00+00:00"
    (tmp_path / "checkpoint-2" / "checkpoint.json").write_text(json.dumps(facts))
    train(studio, tmp_path, *RUN)
    run = training_run(tmp_path)
    assert 1000 < run["seconds"] < 2000
    assert run["started_at"] == "2026-01-01T00:00:00+00:00"
