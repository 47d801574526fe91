"""Paintings that are held out: evaluated on and not trained on, in every condition and replicate the same."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from mimicry.common.errors import TrainingFailed
from mimicry.study.images import ImageFolder, read_rgb
from mimicry.study.pairing import held_out
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import RUN, assert_same_end, metrics, stopped
from tests.tuning.hf_diffusers.studio import Studio, training_run

HOLD_OUT = 2


@pytest.fixture
def flags(studio: Studio) -> tuple[str, ...]:
    return (f"--hold_out={HOLD_OUT}", f"--eval_data_dir={studio.images}", f"--pair_with_dir={studio.images}")


def stems_of(studio: Studio) -> list[str]:
    return ImageFolder.read(studio.images).stems


def test_conditions_and_seeds_leave_out_the_same_and_start_from_the_same_value(
    studio: Studio, flags: tuple[str, ...], tmp_path: Path
) -> None:
    held = held_out(stems_of(studio), HOLD_OUT)
    runs = {}
    for name, images, seed in (
        ("original", studio.images, 42),
        ("mist", studio.mist, 42),
        ("replicate", studio.images, 43),
    ):
        train(studio, tmp_path / name, *flags, f"--seed={seed}", "--learning_rate=0.01", images=images)
        runs[name] = training_run(tmp_path / name)
        assert runs[name]["held_out"] == list(held)
        assert {image["stem"] for image in runs[name]["images"]} == set(stems_of(studio)) - set(held)
        assert runs[name]["recipe"]["options"]["hold_out"] == HOLD_OUT
        assert runs[name]["eval_loss"]["on"] == "held-out"
        assert runs[name]["eval_loss"]["images"] == HOLD_OUT
        assert runs[name]["unpaired"] == []

    starts = {run["eval_loss"]["start"] for run in runs.values()}
    ends = {run["eval_loss"]["end"] for run in runs.values()}
    assert (len(starts), len(ends)) == (1, 3)
    assert runs["original"]["recipe_hash"] == runs["mist"]["recipe_hash"] != runs["replicate"]["recipe_hash"]
    assert runs["original"]["draws_sha256"] == runs["mist"]["draws_sha256"]


def test_it_is_the_training_and_the_evaluation_of_these_paintings_alone(
    studio: Studio, flags: tuple[str, ...], tmp_path: Path
) -> None:
    held = held_out(stems_of(studio), HOLD_OUT)
    for path in ImageFolder.read(studio.images).paths:
        folder = tmp_path / ("held" if path.stem in held else "kept")
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.name)

    train(studio, tmp_path / "out", *flags)
    train(studio, tmp_path / "alone", f"--eval_data_dir={tmp_path / 'held'}", images=tmp_path / "kept")

    out, alone = training_run(tmp_path / "out"), training_run(tmp_path / "alone")
    assert out["weights"]["sha256"] == alone["weights"]["sha256"]
    assert metrics(tmp_path / "out") == metrics(tmp_path / "alone")
    assert alone["eval_loss"] == out["eval_loss"] | {"on": "unknown"}
    assert alone["held_out"] == []


def test_a_resumed_run_ends_as_a_whole_one(studio: Studio, flags: tuple[str, ...], tmp_path: Path) -> None:
    train(studio, tmp_path / "whole", *RUN, *flags)
    stopped(studio, tmp_path / "resumed", 3, *flags)
    train(studio, tmp_path / "resumed", *RUN, *flags)

    assert training_run(tmp_path / "resumed")["resumed_from"] == 3
    assert_same_end(tmp_path / "resumed", tmp_path / "whole")
    assert training_run(tmp_path / "resumed")["eval_loss"] == training_run(tmp_path / "whole")["eval_loss"]


def test_a_checkpoint_of_another_number_is_not_used(
    studio: Studio, flags: tuple[str, ...], tmp_path: Path
) -> None:
    stopped(studio, tmp_path, 3, *flags)
    train(studio, tmp_path, *RUN, f"--eval_data_dir={studio.images}")

    run = training_run(tmp_path)
    assert run["resumed_from"] is None
    assert any("hold_out 2 -> 0" in warning for warning in run["warnings"])


def test_an_evaluation_that_lacks_held_out_paintings_is_left_out(
    studio: Studio, flags: tuple[str, ...], tmp_path: Path
) -> None:
    held = held_out(stems_of(studio), HOLD_OUT)
    shutil.copytree(studio.images, tmp_path / "lacking")
    next(path for path in (tmp_path / "lacking").iterdir() if path.stem == held[0]).unlink()

    train(studio, tmp_path / "out", *flags, f"--eval_data_dir={tmp_path / 'lacking'}")

    skipped = "the folder of --eval_data_dir lacks paintings that --hold_out holds out"
    assert training_run(tmp_path / "out")["eval_loss"] == {"skipped": skipped}


def test_none_may_be_left(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="--hold-out 4 leaves no image to train on, of 4 in"):
        train(studio, tmp_path / "out", "--hold_out=4")
    assert not (tmp_path / "out" / "training_run.json").exists()


def test_a_set_that_is_smaller_and_nothing_else_trains_the_same_adapter_once_sizes_are_evened_out(
    studio: Studio, tmp_path: Path
) -> None:
    """As a protection of 512 pixels would whose method did nothing."""
    small = tmp_path / "small"
    small.mkdir()
    for path in ImageFolder.read(studio.images).paths:
        picture = read_rgb(path)
        scale = 40 / min(picture.size)
        size = (round(scale * picture.width), round(scale * picture.height))
        picture.resize(size, Image.Resampling.LANCZOS).save(small / f"{path.stem}.png")

    for flags in ((), ("--source_resolution=40",)):
        runs = []
        for images in (studio.images, small):
            out = tmp_path / f"{images.name}{len(flags)}"
            train(studio, out, *flags, images=images)
            runs.append(training_run(out))
        assert runs[0]["recipe_hash"] == runs[1]["recipe_hash"]
        assert (runs[0]["weights"]["sha256"] == runs[1]["weights"]["sha256"]) is bool(flags)
        assert ("source_resolution" in runs[0]["recipe"]["options"]) is bool(flags)
