"""metrics.jsonl and training_run.json: what a lab can look up after the run, and what it must not find."""

import hashlib
import json
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mimicry.common.files import canonical_json, sha256_text
from mimicry.common.processes import Interrupted
from mimicry.tuning.hf_diffusers.sd3 import stages
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.training import records
from mimicry.tuning.hf_diffusers.training.records import RunRecord, nvidia_driver
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.studio import SECRET, Studio, training_run

STEPS = 5
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def trained(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained with a token in the environment."""
    folder = tmp_path_factory.mktemp("records") / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        train(studio, folder, f"--max_train_steps={STEPS}", "--note=19 images only", "--note=twice")
    return folder


@pytest.fixture
def run(trained: Path) -> dict[str, Any]:
    return training_run(trained)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TestMetrics:
    def test_there_is_one_line_for_each_step(self, trained: Path) -> None:
        lines = metrics(trained)
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        for line in lines:
            assert set(line) == {"step", "loss", "lr", "grad_norm", "seconds", "peak_memory_bytes"}
            assert line["lr"] == 1e-4
            assert 0 < line["loss"] < 10
            assert line["grad_norm"] > 0
            assert line["seconds"] > 0
            assert line["peak_memory_bytes"] > 1 << 20

    def test_a_new_run_begins_a_new_file(self, studio: Studio, tmp_path: Path) -> None:
        for _ in range(2):
            train(studio, tmp_path)
        assert [line["step"] for line in metrics(tmp_path)] == [1, 2]


class TestTrainingRun:
    def test_it_has_these_keys(self, run: dict[str, Any]) -> None:
        assert set(run) == set(
            """
            schema recipe recipe_hash options base_model command paths host versions warnings images unpaired
            held_out numerics memory other_numerics status started_at finished_at seconds stage_seconds steps
            resumed_from earlier_seconds loss_spikes peak_memory_bytes final_loss mean_loss draws_sha256
            weights eval_loss
            """.split()
        )
        assert run["schema"] == 1
        assert run["status"] == "complete"
        assert run["resumed_from"] is None

    def test_it_tells_the_losses_of_the_metrics(self, trained: Path, run: dict[str, Any]) -> None:
        losses = [line["loss"] for line in metrics(trained)]
        assert run["steps"] == STEPS
        assert run["final_loss"] == losses[-1]
        assert run["mean_loss"] == pytest.approx(fmean(losses))

    def test_the_weights_and_images_are_those_on_disk(
        self, studio: Studio, trained: Path, run: dict[str, Any]
    ) -> None:
        assert run["weights"] == {
            "sha256": sha256(trained / WEIGHTS),
            "bytes": (trained / WEIGHTS).stat().st_size,
            "modules": 23,
        }
        files = sorted(studio.images.iterdir())
        assert [[image[key] for key in ("name", "stem", "size", "sha256")] for image in run["images"]] == [
            [path.name, path.stem, path.stat().st_size, sha256(path)] for path in files
        ]
        for image, path in zip(run["images"], files, strict=True):
            with Image.open(path) as picture:
                assert (image["width"], image["height"]) == picture.size
        assert run["unpaired"] == []

    def test_the_recipe_is_hashed_and_resolved(self, studio: Studio, run: dict[str, Any]) -> None:
        assert run["recipe_hash"] == sha256_text(canonical_json(run["recipe"]))
        assert run["recipe"]["trainer"] == "mimicry"
        # What was added later is not part of a recipe that does not use it.
        assert set(run["recipe"]["options"]) == {
            option.name for option in OPTIONS if option.facts.in_recipe and not option.facts.added_later
        }
        assert set(run["options"]) == {option.name for option in OPTIONS}
        assert (run["options"]["rank"], run["options"]["max_train_steps"]) == (4, STEPS)
        assert set(run["base_model"]) == {"name", "revision", "fingerprint"}

    def test_times_are_told_by_stage(self, run: dict[str, Any]) -> None:
        seconds = dict(run["stage_seconds"])
        # Batches may always have been there in time: less than half a millisecond of waiting is told as 0.
        assert seconds.pop("wait_for_batches") >= 0
        assert set(seconds) == {
            *("encode_prompts", "encode_images", "read_transformer", "first_step", "train", "save"),
        }
        assert all(value > 0 for value in seconds.values())
        assert sum(run["stage_seconds"].values()) <= run["seconds"]
        begin, end = (datetime.fromisoformat(run[key]) for key in ("started_at", "finished_at"))
        assert begin.tzinfo is not None
        assert begin <= end

    def test_the_numerics_say_what_may_change_the_last_bits(self, run: dict[str, Any]) -> None:
        assert run["numerics"]["device"] == "cpu"
        assert run["numerics"]["threads"] == 1
        assert run["numerics"]["torch"] == torch.__version__
        assert run["numerics"]["pillow"] == run["versions"]["pillow"]
        # What changes no bit stands elsewhere: sisters with another GPU's memory are the same.
        assert set(run["memory"]) == {"conditioning_table", "checkpointed_blocks"}
        assert not set(run["memory"]) & set(run["numerics"])

    def test_warnings_and_command_are_kept(self, run: dict[str, Any]) -> None:
        assert run["warnings"] == ["19 images only", "twice"]
        assert f"--max_train_steps={STEPS}" in run["command"]

    def test_paths_of_the_machine_stand_where_they_are_left_out_of_uploads(
        self, studio: Studio, run: dict[str, Any]
    ) -> None:
        rest = {key: value for key, value in run.items() if key not in ("paths", "command", "host")}
        assert run["paths"]["instance_data_dir"] == str(studio.images)
        assert run["paths"]["base_model"] == str(studio.base_model)
        assert str(studio.images.parent) not in json.dumps(rest)
        assert str(studio.base_model) not in json.dumps(rest)

    def test_no_file_has_the_token(self, trained: Path) -> None:
        files = [path for path in trained.rglob("*") if path.is_file()]
        assert len(files) == 4
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]


class TestStages:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The time, in one number."""
        clock = [100.0]
        monkeypatch.setattr(records, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        return clock

    def new_record(self, folder: Path) -> RunRecord:
        nowhere: Any = None
        return RunRecord(
            output_dir=folder, config=TuningConfig(), trained=nowhere, numerics=nowhere, runtime=nowhere
        )

    def test_a_second_belongs_to_the_innermost_stage_alone(self, clock: list[float], tmp_path: Path) -> None:
        record = self.new_record(tmp_path)
        clock[0] += 1000
        for _ in range(2):
            with record.stage("train"):
                clock[0] += 1
                with record.stage("validate"):
                    clock[0] += 10
                    with record.stage("save"):
                        clock[0] += 100
                    clock[0] += 20
                with record.stage("save"):
                    clock[0] += 200
                clock[0] += 2
        with record.stage("save"):
            clock[0] += 0.5
        assert record.stage.seconds == {"train": 6, "validate": 60, "save": 600.5}

    def test_one_that_fails_is_timed_too(self, clock: list[float], tmp_path: Path) -> None:
        record = self.new_record(tmp_path)
        with suppress(LookupError), record.stage("train"):
            clock[0] += 3
            with record.stage("validate"):
                clock[0] += 4
                raise LookupError
        with record.stage("save"):
            clock[0] += 5
        assert record.stage.seconds == {"train": 3, "validate": 4, "save": 5}


def test_checkpoints_evaluation_and_the_table_have_stages_of_their_own(
    studio: Studio, tmp_path: Path
) -> None:
    words = ("--conditioning_table", "--max_train_steps=3", "--checkpointing_steps=1")
    train(studio, tmp_path, *words, f"--eval_data_dir={studio.images}")
    run = training_run(tmp_path)
    assert {"conditioning_table", "evaluate", "save"} < set(run["stage_seconds"])
    assert sum(run["stage_seconds"].values()) <= run["seconds"]


def test_what_comes_after_the_adapter_stands_in_the_record_too(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early: list[dict[str, Any]] = []

    def decode(_: Any, record: RunRecord) -> None:
        early.append(training_run(tmp_path))
        with record.stage("decode"):
            record.warn("one image is missing")

    monkeypatch.setattr(stages, "decode_samples", decode)
    train(studio, tmp_path)
    run = training_run(tmp_path)
    assert run["warnings"] == [*early[0]["warnings"], "one image is missing"]
    assert set(run["stage_seconds"]) == {*early[0]["stage_seconds"], "save", "decode"}
    assert run["seconds"] >= early[0]["seconds"]
    late = {"warnings", "seconds", "stage_seconds", "finished_at", "peak_memory_bytes"}
    assert {key: run[key] for key in run if key not in late} == {
        key: early[0][key] for key in early[0] if key not in late
    }


def test_while_it_runs_the_record_says_so(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    make_batch = BatchSource.make

    def look(batches: BatchSource, first: int) -> ForwardBatch:
        seen.append(training_run(tmp_path))
        return make_batch(batches, first)

    monkeypatch.setattr(BatchSource, "make", look)
    train(studio, tmp_path)
    assert {run["status"] for run in seen} == {"running"}
    assert {run["finished_at"] for run in seen} == {None}
    assert not any("weights" in run for run in seen)
    assert training_run(tmp_path)["status"] == "complete"


def test_a_stop_is_recorded(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = Trainer.take_step

    def stop(trainer: Trainer, step: int) -> tuple[float, float]:
        if step == 2:
            raise Interrupted(15)
        return take_step(trainer, step)

    monkeypatch.setattr(Trainer, "take_step", stop)
    with pytest.raises(Interrupted):
        train(studio, tmp_path)
    run = training_run(tmp_path)
    assert (run["status"], run["error"], run["steps"]) == ("interrupted", "stopped by SIGTERM", 1)
    assert not os.path.lexists(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 580.95.05; echo 580.95.05", "580.95.05"),
        ("echo No devices were found; exit 6", None),
        ("exit 0", None),
        (None, None),
    ],
)
def test_the_driver_is_asked_for_its_version(
    script: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert nvidia_driver() == version


def test_the_cpu_has_none_of_it(studio: Studio, tmp_path: Path) -> None:
    make_trainer(studio, tmp_path)
    run = training_run(tmp_path)
    assert {run["numerics"][name] for name in ("cuda", "hip", "cudnn")} == {None}
    # Sisters are not compared by it.
    assert run["versions"]["nvidia_driver"] is None
    assert not [name for name in run["numerics"] if "driver" in name]
