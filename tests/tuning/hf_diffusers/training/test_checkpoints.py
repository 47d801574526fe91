"""What lies in a checkpoint, and which one is used: whole ones of the same run."""

import json
import os
import pickletools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimicry.common.errors import UsageError
from mimicry.tuning.adapters.checkpoint_facts import NotWholeError
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.training import checkpoints
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint, Checkpoints
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.sd3.resuming import (
    RUN,
    STEPS,
    assert_same_end,
    metrics,
    names,
    stopped,
)
from tests.tuning.hf_diffusers.studio import Studio, training_run
from tests.tuning.lora_files import checkpoint_names


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
        make_batch = BatchSource.make

        def look(batches: BatchSource, first: int) -> ForwardBatch:
            if first % 2 == 0:
                seen.append(checkpoint_names(tmp_path))
            return make_batch(batches, first)

        monkeypatch.setattr(BatchSource, "make", look)
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
        packed = json.loads(json.dumps(checkpoints.pack(value, "x", tensors)))
        save_file(tensors, tmp_path / "t")
        back = checkpoints.unpack(packed, load_file(tmp_path / "t"))
        assert list(back) == list(value)
        assert (back["text"], back["pair"]) == (value["text"], value["pair"])
        for name, tensor in back[3].items():
            assert torch.equal(tensor, value[3][name])  # type: ignore[index]
            assert tensor.dtype == value[3][name].dtype  # type: ignore[index]
        with pytest.raises(TypeError, match="x is a function"):
            checkpoints.pack(metrics, "x", {})

    def test_one_that_cannot_be_written_is_a_warning(
        self, studio: Studio, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", full)
        train(studio, tmp_path, *RUN, "--checkpointing_steps=4")
        (warning,) = training_run(tmp_path)["warnings"]
        assert warning.startswith("checkpoint-4 could not be written: the disk is full")
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
        trainer = make_trainer(studio, out, *RUN, *flags, images=images)
        return trainer.record

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


def test_an_option_that_is_new_counts_as_its_default_and_one_that_is_gone_does_not(tmp_path: Path) -> None:
    """A checkpoint of an older version is still of use, unless that version had options that are gone."""
    options = {"rank": 4, "lora_dropout": 0.0}
    recipe = {"options": options, "base_model": {"name": "lab/tiny"}, "trainer": "mimicry"}
    older = {**recipe, "options": {"rank": 4}}
    other = {**recipe, "options": options | {"no_such_option": 1}}

    def chosen(recorded: dict[str, Any]) -> tuple[bool, dict[str, str]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("")
        checkpoints = Checkpoints(output_dir=folder, recipe=recorded, images=[], limit=1)
        checkpoints.save(1, {}, {}, {})
        found, unused = replace(checkpoints, recipe=recipe).choose("latest")
        return found is not None, unused

    assert chosen(recipe) == (True, {})
    assert chosen(older) == (True, {})
    is_used, unused = chosen(other)
    assert not is_used
    assert "options of another version: 'no_such_option'" in unused["checkpoint-1"]
