"""A run that was stopped and taken up again ends as one that was not; checkpoints are whole or not used."""

import json
import os
import pickletools
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimicry.common.children import Interrupted, stop_signals_raise
from mimicry.common.errors import UsageError
from mimicry.tuning.adapter import checkpoint_names
from mimicry.tuning.hf_diffusers.sd3 import checkpoints
from mimicry.tuning.hf_diffusers.sd3.checkpoints import Checkpoint, NotWholeError
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord
from mimicry.tuning.hf_diffusers.sd3.training import Batch, Loop
from tests.tuning.hf_diffusers.sd3.parts import make_loop, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

STEPS = 6
RUN = (f"--max_train_steps={STEPS}", "--gradient_accumulation_steps=2", "--random_flip")
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def whole(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped. Tests must not change it."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    train(studio, folder, *RUN)
    return folder


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
    make_batch = Loop.make_batch

    def stop_at(loop: Loop, first: int) -> Batch:
        if first == 2 * after + micro_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(loop, first)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), stop_signals_raise():
        patch.setattr(Loop, "make_batch", stop_at)
        train(studio, folder, *RUN, *flags)
    run = training_run(folder)
    assert (run["status"], run["steps"], run["error"]) == ("interrupted", after, "stopped by SIGTERM")
    assert not (folder / WEIGHTS).exists()


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
            with pytest.raises(AssertionError, match="SIGINT"):
                stopped(studio, tmp_path, 2)
        train(studio, tmp_path, *RUN)
        assert training_run(tmp_path)["resumed_from"] == 2
        assert_same_end(tmp_path, whole)

    def test_sigusr1_asks_for_a_checkpoint(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_batch, seen = Loop.make_batch, []

        def ask(loop: Loop, first: int) -> Batch:
            seen.append(checkpoint_names(tmp_path))
            if first == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            return make_batch(loop, first)

        monkeypatch.setattr(Loop, "make_batch", ask)
        former = signal.getsignal(signal.SIGUSR1)
        train(studio, tmp_path, *RUN)
        assert signal.getsignal(signal.SIGUSR1) is former
        assert seen == [[]] * 6 + [["checkpoint-3"]] * 6
        assert_same_end(tmp_path, whole)


class TestWhatLies:
    def test_tensors_are_fp32_and_nothing_is_pickled(self, studio: Studio, tmp_path: Path) -> None:
        stopped(studio, tmp_path, 2, "--mixed_precision=bf16")
        folder = tmp_path / "checkpoint-2"
        parts = "adapter.safetensors checkpoint.json metrics.jsonl state.safetensors"
        assert names(folder) == parts.split()
        adapter, state = (load_file(folder / f"{name}.safetensors") for name in ("adapter", "state"))
        assert {value.dtype for value in (*adapter.values(), *state.values())} == {torch.float32}
        assert len(state) == 3 * len(adapter)  # step and two moments
        umask = os.umask(0)
        os.umask(umask)
        for path in folder.iterdir():
            with pytest.raises(ValueError, match="opcode"):
                list(pickletools.genops(path.read_bytes()))
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_every_n_steps_and_the_newest_ones(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []
        make_batch = Loop.make_batch

        def look(loop: Loop, first: int) -> Batch:
            if first % 2 == 0:
                seen.append(checkpoint_names(tmp_path))
            return make_batch(loop, first)

        monkeypatch.setattr(Loop, "make_batch", look)
        train(studio, tmp_path, *RUN, "--checkpointing_steps=1", "--checkpoints_total_limit=2")
        assert seen == [
            [],
            ["checkpoint-1"],
            *([f"checkpoint-{step}", f"checkpoint-{step - 1}"] for step in range(2, STEPS)),
        ]
        assert not [name for name in names(tmp_path) if "checkpoint" in name]

    def test_states_round_trip(self, tmp_path: Path) -> None:
        shared = torch.arange(3.0)
        value = {
            "text": [1, 2.5, None, True, "é"],
            "pair": (0.9, 0.999),
            3: {"step": torch.tensor(7.0), "a": shared, "b": shared, "q": torch.arange(4).to(torch.uint8)},
        }
        tensors: dict[str, torch.Tensor] = {}
        packed = json.loads(json.dumps(checkpoints._packed(value, "x", tensors)))
        save_file(tensors, tmp_path / "t")
        back = checkpoints._unpacked(packed, load_file(tmp_path / "t"))
        assert list(back) == list(value)
        assert (back["text"], back["pair"]) == (value["text"], value["pair"])
        for name, tensor in back[3].items():
            assert torch.equal(tensor, value[3][name])  # type: ignore[index]
            assert tensor.dtype == value[3][name].dtype  # type: ignore[index]
        with pytest.raises(TypeError, match="x is a function"):
            checkpoints._packed(metrics, "x", {})

    def test_one_that_cannot_be_written_is_a_warning(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", full)
        train(studio, tmp_path, *RUN, "--checkpointing_steps=4")
        assert training_run(tmp_path)["warnings"] == [
            "checkpoint-4 could not be written: No space left on device"
        ]
        assert_same_end(tmp_path, whole)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    (name, damage)
    for name in ("adapter.safetensors", "state.safetensors", "metrics.jsonl", "checkpoint.json")
    for damage in (Path.unlink, truncate, flip_a_bit)
    if not (name == "checkpoint.json" and damage is truncate)  # its last byte is a newline
]


@pytest.fixture(scope="module")
def interrupted(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 4. Tests must not change it."""
    folder = tmp_path_factory.mktemp("interrupted") / "out"
    stopped(studio, folder, 4, "--checkpointing_steps=2", "--checkpoints_total_limit=2")
    return folder


class TestNotUsed:
    @pytest.fixture
    def out(self, interrupted: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(interrupted, tmp_path / "out"))

    def chosen(self, studio: Studio, out: Path, *flags: str, images: Path | None = None) -> RunRecord:
        """Return the record of a run that would begin now."""
        loop = make_loop(studio, out, *RUN, *flags, images=images)
        return loop._record

    @pytest.mark.parametrize(("name", "damage"), DAMAGES)
    def test_a_damaged_one_is_passed_over(
        self, name: str, damage: Callable[[Path], None], studio: Studio, out: Path
    ) -> None:
        damage(out / "checkpoint-4" / name)
        with pytest.raises(NotWholeError, match="it is not whole"):
            Checkpoint.read(out / "checkpoint-4")
        record = self.chosen(studio, out)
        assert record.resumed is not None
        assert (record.resumed.step, record.steps) == (2, 2)
        (warning,) = training_run(out)["warnings"]
        assert warning.startswith("not resumed from checkpoint-4: it is not whole: ")
        assert warning.endswith("; it is set aside")
        assert str(out) not in warning
        assert len(metrics(out)) == 2

    def test_what_a_killed_writer_left_is_removed(self, studio: Studio, out: Path) -> None:
        (out / "checkpoint-4").rename(out / ".checkpoint-5-x")
        record = self.chosen(studio, out)
        assert record.resumed is not None
        assert record.resumed.step == 2
        assert names(out) == ["checkpoint-2", "metrics.jsonl", "training_run.json"]

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (("--seed=43",), "seed 42 -> 43"),
            (("--max_train_steps=7", "--rank=2"), "rank 4 -> 2, max_train_steps 6 -> 7"),
            (("--resume_from_checkpoint=none",), "a new beginning was asked for"),
        ],
    )
    def test_another_recipe_begins_anew(
        self, flags: tuple[str, ...], reason: str, studio: Studio, out: Path, capsys: Any
    ) -> None:
        record = self.chosen(studio, out, *flags)
        assert (record.resumed, record.steps) == (None, 0)
        run = training_run(out)
        assert run["resumed_from"] is None
        assert len(run["warnings"]) == 2
        assert all(reason in warning for warning in run["warnings"])
        assert f"warning: {run['warnings'][0]}" in capsys.readouterr().out
        assert names(out) == ["metrics.jsonl", "training_run.json"]
        (aside,) = (out / "set_aside").iterdir()
        assert Checkpoint.read(aside / "checkpoint-4").step == 4

    def test_other_images_begin_anew(self, studio: Studio, out: Path) -> None:
        record = self.chosen(studio, out, images=studio.mist)
        assert record.resumed is None
        assert all("other images" in warning for warning in training_run(out)["warnings"])

    def test_the_way_to_the_same_result_does_not_matter(self, studio: Studio, out: Path) -> None:
        record = self.chosen(studio, out, "--cache_latents", "--gradient_checkpointing", "--deterministic")
        torch.use_deterministic_algorithms(False)
        assert record.resumed is not None
        (warning,) = training_run(out)["warnings"]
        assert warning.endswith("the last bits may differ: deterministic False -> True")

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (("--resume_from_checkpoint=nowhere",), "there is no such folder"),
            (("--resume_from_checkpoint=checkpoint-3",), "there is no such folder"),
            (("--resume_from_checkpoint=checkpoint-4", "--seed=43"), "seed 42 -> 43"),
            (("--resume_from_checkpoint=.",), "it is not whole"),
        ],
    )
    def test_one_that_was_asked_for_and_does_not_fit_is_an_error(
        self, flags: Sequence[str], reason: str, studio: Studio, out: Path
    ) -> None:
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(UsageError) as caught:
            self.chosen(studio, out, *flags)
        (problem,) = caught.value.problems
        assert problem.startswith("--resume-from-checkpoint ")
        assert reason in problem
        assert "type latest, none or the path" in problem
        assert "in its folder: checkpoint-4, checkpoint-2" in problem
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
