"""What lies in an adapter's folder, against what is asked for: a quick look and a full one."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from mimicry.common.files import write_json
from mimicry.study.images import ImageFolder
from mimicry.study.tree import State
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.judge import AdapterSpec, AdapterState, recorded_elsewhere
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.adapters.training_run import TRAINING_RUN, Trained, TrainingRun
from mimicry.tuning.adapters.weights import Adapter, lora_arguments
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.lora_files import adapter_spec, files_in, judge, lora_tensors, save_lora
from tests.tuning.model_files import make_model

both = pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])


class Room:
    """An artist's images, a base model, and an adapter trained on both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output_dir = folder / "adapter"
        self.images_dir = folder / "images"
        self.images_dir.mkdir()
        for name in ("b.png", "a.jpg"):
            (self.images_dir / name).write_bytes(name.encode())
        self.config = TuningConfig(rank=4, pretrained_model_name_or_path=str(make_model(folder / "model")))

    def train(self) -> "Room":
        model = BaseModel.find(self.config)
        assert model is not None
        run = Trained.describe(
            self.config, model.identity(), model.folder, trainer=OWN_TRAINER, command=[], notes=[]
        )
        run.images = ImageFolder.read(self.images_dir).records()
        folder = AdapterFolder(self.output_dir, ADAPTER_FORMAT)
        folder.publish(save_lora(self.folder / "saved"), run.content(), None)
        return self

    def judge(self, *, full: bool, trainer: str = OWN_TRAINER, **changes: Any) -> AdapterState:
        asked = adapter_spec(dataclasses.replace(self.config, **changes), trainer)
        return judge(self.output_dir, asked, ImageFolder.read(self.images_dir), full=full)

    def edit_run(self, edit: Callable[[dict[str, Any]], object]) -> None:
        path = self.output_dir / TRAINING_RUN
        run = json.loads(path.read_text())
        edit(run)
        write_json(path, run)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@both
class TestBothLooks:
    def test_absent(self, room: Room, full: bool) -> None:
        assert room.judge(full=full) == AdapterState(State.WAITING)
        room.train()
        (room.output_dir / WEIGHTS).unlink()
        assert room.judge(full=full) == AdapterState(State.WAITING)

    def test_complete_and_nothing_is_written(self, room: Room, full: bool) -> None:
        room.train()
        before = files_in(room.folder)
        assert room.judge(full=full) == AdapterState(State.COMPLETE)
        assert files_in(room.folder) == before

    def test_what_does_not_define_it_may_change(self, room: Room, full: bool) -> None:
        room.train()
        state = room.judge(
            full=full, cache_latents=False, gradient_checkpointing=False, cache_dir=str(room.folder)
        )
        assert state == AdapterState(State.COMPLETE)

    def test_of_another_tool(self, room: Room, full: bool) -> None:
        save_lora(room.output_dir / WEIGHTS)
        assert room.judge(full=full) == AdapterState(State.COMPLETE, "made by another tool")
        state = room.judge(full=full, rank=8)
        assert state.state is State.BROKEN
        assert "rank 4 where 8" in state.reason

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (b'{"r": 4}', None),
            (b'{"r": 8}', "has other r than the weights"),
            (b'{"s": 4}', "has other r than the weights"),
            (b'{"r": 4, "target', "cannot be read"),
            (b"[4]", "is not a JSON object"),
        ],
    )
    def test_of_another_tool_with_its_config(
        self, room: Room, full: bool, config: bytes, reason: str | None
    ) -> None:
        save_lora(room.output_dir / WEIGHTS)
        (room.output_dir / ADAPTER_CONFIG).write_bytes(config)
        state = room.judge(full=full)
        assert state.state is (State.COMPLETE if reason is None else State.BROKEN)
        assert reason is None or reason in state.reason

    @pytest.mark.parametrize("name", ["r", "lora_alpha", "target_modules", "bias"])
    def test_what_the_header_says_holds_for_the_config(self, room: Room, full: bool, name: str) -> None:
        facts = lora_arguments(4, ("attn.to_q", "attn.to_k"))
        header = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": facts[key] for key in facts})}
        room.output_dir.mkdir(parents=True, exist_ok=True)
        save_file(lora_tensors(), room.output_dir / WEIGHTS, metadata=header)
        path = room.output_dir / ADAPTER_CONFIG
        # In another order of names: other tools have none.
        path.write_text(json.dumps({**facts, "target_modules": ["attn.to_q", "attn.to_k"]}))
        assert room.judge(full=full) == AdapterState(State.COMPLETE, "made by another tool")
        path.write_text(json.dumps({**facts, name: "x"}))
        state = room.judge(full=full)
        assert state.state is State.BROKEN
        assert f"has other {name} than" in state.reason

    def test_stale_options(self, room: Room, full: bool) -> None:
        room.train()
        assert room.judge(full=full, rank=8, seed=1) == AdapterState(State.STALE, "rank 4 -> 8, seed 42 -> 1")

    def test_stale_trainer(self, room: Room, full: bool) -> None:
        assert room.train().judge(full=full, trainer="x.py") == AdapterState(State.STALE, "another trainer")

    def test_stale_base_model(self, room: Room, full: bool) -> None:
        room.train()
        (room.folder / "model" / "vae" / "model.safetensors").write_bytes(b"other")
        assert room.judge(full=full) == AdapterState(State.STALE, "another base model")

    def test_a_base_model_that_is_not_here_yet_is_told_by_its_name(self, room: Room, full: bool) -> None:
        state = room.train().judge(full=full, pretrained_model_name_or_path="lab/not-here")
        assert state == AdapterState(State.STALE, "another base model")

    @pytest.mark.parametrize("change", ["more", "fewer", "renamed", "longer", "dangling"])
    def test_stale_images(self, room: Room, full: bool, change: str) -> None:
        room.train()
        image = room.images_dir / "a.jpg"
        if change == "more":
            (room.images_dir / "c.png").touch()
        if change in ("fewer", "dangling"):
            image.unlink()
        if change == "dangling":
            image.symlink_to("nowhere")
        if change == "renamed":
            image.rename(room.images_dir / "a2.jpg")
        if change == "longer":
            image.write_bytes(b"12345678")
        found = room.judge(full=full)
        named = {
            "more": ": new 'c.png'",
            "fewer": ": gone 'a.jpg'",
            "dangling": "",
            "renamed": ": new 'a2.jpg'; gone 'a.jpg'",
            "longer": ": changed 'a.jpg'",
        }
        assert found == AdapterState(State.STALE, f"other images{named[change]}")

    def test_all_reasons_at_once(self, room: Room, full: bool) -> None:
        room.train()
        (room.images_dir / "c.png").touch()
        state = room.judge(full=full, rank=8, trainer="x.py")
        assert state == AdapterState(State.STALE, "rank 4 -> 8, another trainer, other images: new 'c.png'")

    @pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
    def test_broken_weights(self, room: Room, full: bool, content: bytes) -> None:
        room.train()
        (room.output_dir / WEIGHTS).write_bytes(content)
        state = room.judge(full=full)
        assert state.state is State.BROKEN
        assert WEIGHTS in state.reason

    def test_truncated_weights(self, room: Room, full: bool) -> None:
        room.train()
        with (room.output_dir / WEIGHTS).open("r+b") as file:
            file.truncate(file.seek(0, 2) - 2)
        assert room.judge(full=full).state is State.BROKEN

    def test_weights_of_another_rank_than_their_record(self, room: Room, full: bool) -> None:
        room.train()
        save_lora(room.output_dir / WEIGHTS, rank=8)
        assert room.judge(full=full).state is State.BROKEN

    def test_a_record_of_a_run_that_did_not_end(self, room: Room, full: bool) -> None:
        room.train().edit_run(lambda run: run.pop("weights"))
        assert room.judge(full=full).state is State.BROKEN

    @pytest.mark.parametrize(
        "edit",
        [
            {"options": None},
            {"options": {"rank": "4"}},
            {"recipe": []},
            {"images": [7]},
            {"weights": "x"},
        ],
        ids=repr,
    )
    def test_a_record_that_somebody_has_edited(self, room: Room, full: bool, edit: dict[str, Any]) -> None:
        room.train().edit_run(lambda run: run.update(edit))
        assert room.judge(full=full).state is State.BROKEN

    @pytest.mark.parametrize("edit", [{"recipe": {}}, {"recipe": {"options": 3}}, {"images": [{}, {}]}])
    def test_a_record_of_another_form(self, room: Room, full: bool, edit: dict[str, Any]) -> None:
        room.train().edit_run(lambda run: run.update(edit))
        assert room.judge(full=full).state is State.STALE

    def test_a_stack_without_options_takes_any_rank_and_recipe(self, room: Room, full: bool) -> None:
        room.train()
        images = ImageFolder.read(room.images_dir)
        assert judge(room.output_dir, AdapterSpec(None, None), images, full=full) == AdapterState(
            State.COMPLETE
        )


class TestWhatOnlyAFullLookFinds:
    def judge_both(self, room: Room) -> tuple[State, State]:
        return room.judge(full=False).state, room.judge(full=True).state

    def test_values_that_are_not_finite(self, room: Room) -> None:
        tensors = lora_tensors()
        next(iter(tensors.values()))[0, 0] = float("inf")
        room.output_dir.mkdir()
        save_file(tensors, room.output_dir / WEIGHTS)
        assert self.judge_both(room) == (State.COMPLETE, State.BROKEN)

    def test_one_flipped_bit(self, room: Room) -> None:
        room.train()
        with (room.output_dir / WEIGHTS).open("r+b") as file:
            file.seek(-2, 2)
            low = file.read(1)[0]
            file.seek(-2, 2)
            file.write(bytes([low ^ 1]))
        assert self.judge_both(room) == (State.COMPLETE, State.BROKEN)

    def test_an_image_of_equal_size(self, room: Room) -> None:
        room.train()
        (room.images_dir / "a.jpg").write_bytes(b"A.jpg")
        assert self.judge_both(room) == (State.COMPLETE, State.STALE)


class TestMemory:
    """Of what a full look has found good, the next one reads the values no more, unless something changed."""

    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
        """The adapters whose values are read, with a memory of their own."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        folders: list[Path] = []

        check = AdapterFolder.check

        def watched(folder: AdapterFolder, rank: int | None) -> Adapter:
            folders.append(folder.path)
            return check(folder, rank)

        monkeypatch.setattr(AdapterFolder, "check", watched)
        return folders

    def rot(self, room: Room) -> None:
        """Change a value as a disk does that rots: without a trace."""
        path = room.output_dir / WEIGHTS
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(-2, 2)
            file.write(b"\x55")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def test_a_good_one_is_read_once(self, room: Room, read: list[Path]) -> None:
        room.train()
        for _ in range(3):
            assert room.judge(full=True) == AdapterState(State.COMPLETE)
        assert len(read) == 1

    @pytest.mark.parametrize("name", [WEIGHTS, TRAINING_RUN])
    @pytest.mark.parametrize("how", ["time", "size", "another file"])
    def test_a_change_is_seen(self, room: Room, read: list[Path], name: str, how: str) -> None:
        room.train().judge(full=True)
        path = room.output_dir / name
        before = path.stat()
        if how == "time":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        else:
            content = path.read_bytes()
            if how == "another file":
                path.rename(room.folder / "old")
            path.write_bytes(content + b" " * (how == "size"))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        room.judge(full=True)
        assert len(read) == 2

    def test_a_foreign_one_is_remembered_with_the_rank_that_was_asked_for(
        self, room: Room, read: list[Path]
    ) -> None:
        save_lora(room.output_dir / WEIGHTS)
        for _ in range(2):
            assert room.judge(full=True).state is State.COMPLETE
            assert len(read) == 1
        assert room.judge(full=True, rank=8).state is State.BROKEN

    def test_a_broken_one_is_read_each_time(self, room: Room, read: list[Path]) -> None:
        room.train()
        self.rot(room)
        for _ in range(2):
            assert room.judge(full=True).state is State.BROKEN
        assert len(read) == 2

    def test_rot_is_found_by_who_asks_for_it_and_told_to_the_others(
        self, room: Room, read: list[Path]
    ) -> None:
        room.train().judge(full=True)
        self.rot(room)
        assert room.judge(full=True).state is State.COMPLETE
        images = ImageFolder.read(room.images_dir)
        asked = adapter_spec(room.config, OWN_TRAINER)
        assert judge(room.output_dir, asked, images, full=True, anew=True).state is State.BROKEN
        assert room.judge(full=True).state is State.BROKEN
        assert len(read) == 3

    def test_images_are_compared_all_the_same(self, room: Room, read: list[Path]) -> None:
        room.train().judge(full=True)
        (room.images_dir / "a.jpg").write_bytes(b"A.jpg")
        assert room.judge(full=True).state is State.STALE
        assert len(read) == 1


def test_asked() -> None:
    config = TuningConfig(rank=7, pretrained_model_name_or_path="lab/not-here")
    assert adapter_spec(config, OWN_TRAINER) == AdapterSpec(7, recipe(config, None, OWN_TRAINER))


HERE = Path("/study/models/lora/s/mist__none/a/b/Anna")


def of(output_dir: Any) -> TrainingRun:
    return TrainingRun({"paths": {"output_dir": output_dir}})


@pytest.mark.parametrize(
    "output_dir",
    [
        "/study/models/lora/s/mist__none/a/b/Anna",
        "/another machine/models/lora/s/mist__none/a/b/Anna",
        # Reused for a study of another recipe beside it.
        "/study/models/lora/s@big/mist__none/a/b/Anna",
        # What tells nothing.
        "/tmp/out",
        "",
        None,
        7,
    ],
)
def test_at_its_place_as_far_as_can_be_told(output_dir: Any) -> None:
    assert recorded_elsewhere(HERE, of(output_dir)) == ""


@pytest.mark.parametrize("place", ["none__none/a/b/Anna", "mist__none/a/b/Boris", "mist__none/z/b/Anna"])
def test_the_record_of_another(place: str) -> None:
    found = recorded_elsewhere(HERE, of(f"/study/models/lora/s/{place}"))
    assert found == f"its record is of {place}"


def test_a_folder_outside_of_a_study_or_no_record_of_paths() -> None:
    assert recorded_elsewhere(Path("/tmp/out"), of(str(HERE))) == ""
    assert recorded_elsewhere(HERE, TrainingRun({})) == ""
