"""A run that was stopped at any step and taken up again ends with the bytes of one that was not."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mimicry.common.processes import Interrupted, stop_signals_raise
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.training import checkpoints
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import (
    RUN,
    STEPS,
    WEIGHTS,
    assert_same_end,
    metrics,
    names,
    stopped,
)
from tests.tuning.hf_diffusers.studio import Studio, training_run
from tests.tuning.lora_files import checkpoint_names


class TestExactResume:
    @pytest.mark.parametrize("after", range(1, STEPS))
    def test_after_any_step(self, after: int, studio: Studio, whole: Path, tmp_path: Path) -> None:
        stopped(studio, tmp_path, after, micro_step=after % 2)
        assert names(tmp_path) == [f"checkpoint-{after}", "metrics.jsonl", "training_run.json"]
        train(studio, tmp_path, *RUN)
        assert_same_end(tmp_path, whole)
        assert training_run(tmp_path)["resumed_from"] == after

    def test_several_times_in_a_row(self, studio: Studio, whole: Path, tmp_path: Path) -> None:
        stopped(studio, tmp_path, 0)
        assert names(tmp_path) == ["metrics.jsonl", "training_run.json"]
        # The second of these stops comes before a step was taken anew, the fourth changes what is cached.
        for after, flags in ((1, ()), (1, ()), (2, ("--cache_latents",)), (5, ())):
            stopped(studio, tmp_path, after, *flags)
            assert len(metrics(tmp_path)) == after
        train(studio, tmp_path, *RUN, "--cache_latents", "--gradient_checkpointing")
        assert_same_end(tmp_path, whole)

    @pytest.mark.parametrize(
        "flags",
        [
            ("--cache_latents",),
            ("--center_crop",),
            ("--mixed_precision=bf16", "--conditioning_table"),
            ("--lr_scheduler=cosine", "--lr_warmup_steps=2", "--lora_dropout=0.3"),
            ("--lr_scheduler=polynomial", "--repeats=2", "--lora_blocks=0,2"),
        ],
    )
    def test_whatever_the_options(self, flags: tuple[str, ...], studio: Studio, tmp_path: Path) -> None:
        train(studio, tmp_path / "whole", *RUN, *flags)
        stopped(studio, tmp_path / "out", 3, *flags)
        train(studio, tmp_path / "out", *RUN, *flags)
        assert_same_end(tmp_path / "out", tmp_path / "whole")

    def test_with_an_evaluation(self, studio: Studio, tmp_path: Path) -> None:
        flags = (f"--eval_data_dir={studio.images}", "--eval_timesteps=2", "--lora_dropout=0.3")
        train(studio, tmp_path / "whole", *RUN, *flags)
        stopped(studio, tmp_path / "out", 3, *flags)
        train(studio, tmp_path / "out", *RUN, *flags)
        assert_same_end(tmp_path / "out", tmp_path / "whole")
        ours, theirs = (training_run(tmp_path / name)["eval_loss"] for name in ("out", "whole"))
        assert ours == theirs
        assert None not in (ours["start"], ours["end"])

    def test_from_a_checkpoint_that_was_chosen(self, studio: Studio, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        stopped(studio, out, 5, "--checkpointing_steps=2", "--checkpoints_total_limit=9")
        assert names(out)[:3] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
        elsewhere = tmp_path / "kept" / "checkpoint-2"
        shutil.copytree(out / "checkpoint-2", elsewhere)
        # By its name, as in the diffusers example; those after it are set aside.
        stopped(studio, out, 3, "--resume_from_checkpoint=checkpoint-2", "--checkpoints_total_limit=2")
        assert training_run(out)["resumed_from"] == 2
        assert names(out)[:2] == ["checkpoint-2", "checkpoint-3"]
        (aside,) = (out / "set_aside").iterdir()
        assert names(aside) == ["checkpoint-4", "checkpoint-5"]
        train(studio, out, *RUN, f"--resume_from_checkpoint={elsewhere}")
        assert training_run(out)["resumed_from"] == 2
        assert str(tmp_path) not in json.dumps(training_run(out)["options"])
        assert_same_end(out, whole)

    def test_an_adapter_that_is_there_is_set_aside_with_its_checkpoint(
        self, studio: Studio, whole: Path, tmp_path: Path
    ) -> None:
        """As a process leaves them that was killed just before the last checkpoint was removed."""
        stopped(studio, tmp_path, 4)
        for path in whole.iterdir():
            shutil.copyfile(path, tmp_path / path.name)
        train(studio, tmp_path, *RUN)
        assert training_run(tmp_path)["resumed_from"] is None
        assert_same_end(tmp_path, whole)
        shutil.rmtree(tmp_path / "set_aside")
        stopped(studio, tmp_path / "other", 4)
        (tmp_path / "other" / "checkpoint-4").rename(tmp_path / "checkpoint-4")
        train(studio, tmp_path, *RUN, "--resume_from_checkpoint=checkpoint-4")
        assert training_run(tmp_path)["resumed_from"] == 4
        assert (tmp_path / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()

    def test_lost_metrics_come_back(self, studio: Studio, whole: Path, tmp_path: Path) -> None:
        stopped(studio, tmp_path, 3)
        (tmp_path / "metrics.jsonl").unlink()
        train(studio, tmp_path, *RUN)
        assert_same_end(tmp_path, whole)


class TestStopSignals:
    @pytest.mark.parametrize(
        ("number", "taken"), [(signal.SIGTERM, 0), (signal.SIGINT, 2), (signal.SIGHUP, STEPS - 1)]
    )
    def test_the_optimizer_is_not_interrupted(
        self, number: signal.Signals, taken: int, studio: Studio, whole: Path, tmp_path: Path
    ) -> None:
        """The signal comes in the midst of an update; the step is finished and kept, be it the last one."""
        step = torch.optim.AdamW.step

        def half_way(optimizer: torch.optim.AdamW, *words: Any, **more: Any) -> Any:
            step_number = next(iter(optimizer.state.values()))["step"] if optimizer.state else 0
            if step_number == taken:
                os.kill(os.getpid(), number)
            return step(optimizer, *words, **more)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), stop_signals_raise():
            patch.setattr(torch.optim.AdamW, "step", half_way)
            train(studio, tmp_path, *RUN)
        assert training_run(tmp_path)["steps"] == len(metrics(tmp_path)) == taken + 1
        assert not (tmp_path / WEIGHTS).exists()
        train(studio, tmp_path, *RUN)
        assert_same_end(tmp_path, whole)

    def test_while_the_adapter_is_saved_it_is_saved(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finished = RunRecord.finished

        def signalled(record: RunRecord) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            return finished(record)

        monkeypatch.setattr(RunRecord, "finished", signalled)
        with pytest.raises(Interrupted), stop_signals_raise():
            train(studio, tmp_path, *RUN)
        assert_same_end(tmp_path, whole)

    def test_a_second_signal_does_not_tear_the_checkpoint(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = save_file

        def signalled(tensors: Any, path: Path) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            write(tensors, path)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", signalled)
            stopped(studio, tmp_path, 2)
        train(studio, tmp_path, *RUN)
        assert training_run(tmp_path)["resumed_from"] == 2
        assert_same_end(tmp_path, whole)

    def test_sigusr1_asks_for_a_checkpoint(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_batch, seen = BatchSource.make, []

        def ask(batches: BatchSource, first: int) -> ForwardBatch:
            seen.append(checkpoint_names(tmp_path))
            if first == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            return make_batch(batches, first)

        monkeypatch.setattr(BatchSource, "make", ask)
        former = signal.getsignal(signal.SIGUSR1)
        train(studio, tmp_path, *RUN)
        assert signal.getsignal(signal.SIGUSR1) is former
        assert seen == [[]] * 6 + [["checkpoint-3"]] * 6
        assert_same_end(tmp_path, whole)
