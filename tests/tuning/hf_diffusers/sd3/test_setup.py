"""What a job finds before it begins: images in order, a device that can, a model that fits."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mimicry.common.errors import BatchFault, TrainingFailed, UsageError
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.training.resume import begin
from tests.tuning.hf_diffusers.sd3.parts import make_args
from tests.tuning.hf_diffusers.studio import Studio, training_run


def prepare(studio: Studio, folder: Path, *flags: str, images: Path | None = None) -> Setup:
    return Setup.prepare(make_args(studio, folder / "out", *flags, images=images))


def test_images_are_listed_by_stem_and_other_files_passed_over(studio: Studio, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    picture = next(path for path in studio.images.iterdir() if path.suffix == ".jpg")
    for name in ("c.JPG", "a.jpeg", "b.jpg", "0.jpg", "é.jpg"):
        shutil.copyfile(picture, images / name)
    for name in ("metadata.jsonl", "b.txt", ".hidden.jpg", "Thumbs.db", "c.json"):
        (images / name).write_text("no image")
    (images / "folder.png").mkdir()

    setup = prepare(studio, tmp_path, images=images)

    assert setup.data.schedule.plans[0].stems == ("0", "a", "b", "c", "é")
    assert [path.name for path in setup.data.images.paths] == ["0.jpg", "a.jpeg", "b.jpg", "c.JPG", "é.jpg"]


def test_a_new_crop_is_drawn_for_each_sample(studio: Studio, tmp_path: Path) -> None:
    setup = prepare(studio, tmp_path, "--random_flip")
    crops = [setup.data.schedule.plans[0].sample(index).crop for index in range(40)]
    assert len({(crop.across, crop.down) for crop in crops}) == 40
    assert {crop.flipped for crop in crops} == {False, True}


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_images_is_named(exists: bool, studio: Studio, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingFailed, match=f"there is no image in {tmp_path / 'empty'}"):
        prepare(studio, tmp_path, images=tmp_path / "empty")


def test_two_files_of_one_stem_are_named(studio: Studio, tmp_path: Path) -> None:
    picture = next(iter(studio.images.iterdir()))
    (tmp_path / "images").mkdir()
    for name in ("one.png", "one.jpg"):
        shutil.copyfile(picture, tmp_path / "images" / name)
    with pytest.raises(TrainingFailed, match="share the stem 'one'"):
        prepare(studio, tmp_path, images=tmp_path / "images")


def test_a_resolution_that_the_model_does_not_take_names_the_nearest(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(BatchFault, match=r"--resolution 37: .* type --resolution 40"):
        prepare(studio, tmp_path, "--resolution=37")


def test_more_processes_than_gpus_are_refused(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"--num-processes 3 .* there are 2; type --num-processes 2"):
        prepare(studio, tmp_path)


def test_each_of_several_processes_has_its_turn(studio: Studio, tmp_path: Path) -> None:
    setup = prepare(studio, tmp_path, "--train_batch_size=2", "--max_train_steps=2")
    config = dataclasses.replace(setup.args.config, num_processes=3)
    schedule = dataclasses.replace(setup.data.schedule, config=config, process_count=3)
    own = [list(dataclasses.replace(schedule, process_index=index).own_indices()) for index in range(3)]
    assert own == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.fixture
def tf32_switches() -> Iterator[tuple[Any, ...]]:
    """What torch may use TF32 in, as it was once the test is over."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.mark.parametrize("flag", [(), ("--allow_tf32",)], ids=["off", "on"])
def test_tf32_is_used_when_asked_for_and_never_else(
    flag: tuple[str, ...], tf32_switches: tuple[Any, ...], studio: Studio, tmp_path: Path
) -> None:
    for switch in tf32_switches:
        switch.allow_tf32 = not flag
    setup = prepare(studio, tmp_path, *flag)
    assert [switch.allow_tf32 for switch in tf32_switches] == [bool(flag)] * 2
    begin(setup.new_record())
    assert training_run(tmp_path / "out")["numerics"]["tf32"] == bool(flag)


@pytest.mark.parametrize("flag", ["--lora_layers=attn.toq", "--lora_blocks=7"])
def test_layers_and_blocks_that_are_not_there_are_refused_at_once(
    flag: str, studio: Studio, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"--lora-(layers|blocks): '(attn\.toq|7)' is not a"):
        prepare(studio, tmp_path, flag)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fp16_without_a_gpu_names_what_works(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--mixed-precision bf16 or no"):
        prepare(studio, tmp_path, "--mixed_precision=fp16")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 2),
        (("--train_batch_size=3", "--gradient_accumulation_steps=5"), 30),
        (("--num_train_epochs=3",), 12),
        (("--num_train_epochs=3", "--repeats=2", "--train_batch_size=5"), 25),
    ],
)
def test_the_samples_of_a_run_are_numbered_from_0(
    words: tuple[str, ...], count: int, studio: Studio, tmp_path: Path
) -> None:
    assert list(prepare(studio, tmp_path, *words).data.schedule.own_indices()) == list(range(count))
