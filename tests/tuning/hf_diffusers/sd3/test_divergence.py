"""A training that diverges stops before it does harm; a loss that stands out is recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import ForwardBatch
from mimicry.tuning.hf_diffusers.training import records
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

RUN = ("--max_train_steps=6", "--gradient_accumulation_steps=2", "--random_flip")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics without what no two runs have in common."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "peak_memory_bytes")} for line in lines]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_no_checkpoint_of_a_poisoned_state(studio: Studio, tmp_path: Path) -> None:
    trainer = make_trainer(studio, tmp_path, *RUN)
    trainer.take_step(1)
    next(iter(trainer.model.parameters.values())).data[0, 0] = float("inf")
    with pytest.raises(TrainingFailed, match=r"after step 1, .* is not a finite number: training diverged"):
        trainer.save_checkpoint()
    assert names(tmp_path) == ["metrics.jsonl", "training_run.json"]


def test_a_gradient_that_is_no_number_ends_the_training(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_loss = AdaptedTransformer.loss

    def endless_slope(model: AdaptedTransformer, batch: ForwardBatch) -> torch.Tensor:
        loss = batch_loss(model, batch)
        if batch.samples[0].index >= 6:
            loss.register_hook(lambda slope: slope * float("inf"))  # type: ignore[no-untyped-call]
        return loss

    monkeypatch.setattr(AdaptedTransformer, "loss", endless_slope)
    with pytest.raises(TrainingFailed, match=r"the gradient of step 4 is (nan|inf): training diverged"):
        train(studio, tmp_path, *RUN, "--checkpointing_steps=2")
    run = training_run(tmp_path)
    assert (run["status"], run["steps"]) == ("failed", 3)
    assert names(tmp_path) == ["checkpoint-2", "metrics.jsonl", "training_run.json"]
    assert Checkpoint.read(tmp_path / "checkpoint-2").step == 2
    assert len(metrics(tmp_path)) == 3


@pytest.mark.parametrize(("scale", "ends"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_fp16_leaves_a_step_out_while_it_looks_for_its_scale(
    scale: float, ends: bool, studio: Studio, tmp_path: Path
) -> None:
    trainer = make_trainer(studio, tmp_path, *RUN)
    trainer.runtime.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.runtime.accelerator.scaler.scale(torch.ones(()))  # which makes its state
    if ends:
        with pytest.raises(TrainingFailed, match="the gradient of step 1 is inf"):
            trainer.refuse_divergence(1, 0.5, float("inf"))
    else:
        trainer.refuse_divergence(1, 0.5, float("inf"))
    with pytest.raises(TrainingFailed, match="the loss of step 1 is nan"):
        trainer.refuse_divergence(1, float("nan"), 1.0)
    trainer.record.add_step(1, 0.5, 1e-4, float("inf"), 0.1)
    assert metrics(tmp_path) == [{"step": 1, "loss": 0.5, "lr": 1e-4, "grad_norm": None}]


def test_loss_spikes_are_recorded(studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_trainer(studio, tmp_path, "--max_train_steps=100").record
    losses = {5: 9.0, 20: 4.9, 30: 5.1, 80: 7.0}  # the first comes before there is anything to compare with
    for step in range(1, 101):
        record.add_step(step, losses.get(step, 1.0), 1e-4, 1.0, 0.1)
    assert record.finished()["loss_spikes"] == [{"step": 30, "loss": 5.1}, {"step": 80, "loss": 7.0}]
    assert "loss spike at step 30: 5.1000, where the median was 1.0000" in capsys.readouterr().out
    assert (records.SPIKE_FACTOR, records.SPIKE_WINDOW) == (5.0, 50)
