"""Sets whose files have other names than their originals: they draw what their originals draw."""

import shutil
from pathlib import Path

import pytest

from tests.tuning.hf_diffusers.sd3.parts import make_args, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

DRAWN = ("--random_flip", "--eval_timesteps=0")


@pytest.fixture
def renamed(studio: Studio, tmp_path: Path) -> Path:
    """The studio's images under names of two strengths, whose order is another one."""
    folder = tmp_path / "renamed"
    folder.mkdir()
    for number, path in enumerate(sorted(studio.images.iterdir())):
        shutil.copy(path, folder / f"{50 - 49 * (number % 2)}_noise_{path.name}")
    return folder


def test_they_are_trained_as_if_they_had_the_names(studio: Studio, renamed: Path, tmp_path: Path) -> None:
    train(studio, tmp_path / "plain", *DRAWN)
    train(studio, tmp_path / "paired", *DRAWN, f"--pair_with_dir={studio.images}", images=renamed)
    train(studio, tmp_path / "alone", *DRAWN, images=renamed)

    plain, paired, alone = (training_run(tmp_path / name) for name in ("plain", "paired", "alone"))
    assert paired["draws_sha256"] == plain["draws_sha256"] != alone["draws_sha256"]
    assert paired["weights"]["sha256"] == plain["weights"]["sha256"] != alone["weights"]["sha256"]
    assert [image["stem"] for image in paired["images"]] == [image["stem"] for image in plain["images"]]
    assert {image["paired_by"] for image in paired["images"]} == {"prefix '50_noise_'", "prefix '1_noise_'"}
    # Nothing was done to them, which is for the plan to forbid, and is on record.
    assert [image["linf"] for image in paired["images"]] == [0] * len(paired["images"])
    assert paired["unpaired"] == plain["unpaired"] == []
    assert paired["paths"]["pair_with_dir"] == str(studio.images)


def test_what_does_not_pair_is_on_record(studio: Studio, renamed: Path, tmp_path: Path) -> None:
    victim = sorted(renamed.iterdir())[0]
    victim.rename(victim.with_name("stranger" + victim.suffix))

    train(studio, tmp_path / "out", *DRAWN, f"--pair_with_dir={studio.images}", images=renamed)

    (mark,) = training_run(tmp_path / "out")["unpaired"]
    assert mark.startswith("lacks ")
    assert mark.endswith("has 'stranger' that original_art has not")


def test_what_is_left_out_goes_by_the_name_of_the_original(
    studio: Studio, renamed: Path, tmp_path: Path
) -> None:
    stem = sorted(studio.images.iterdir())[1].stem
    flags = (f"--pair_with_dir={studio.images}", f"--leave_out={stem}")
    args = make_args(studio, tmp_path / "out", *flags, images=renamed)

    images = args.inputs.read_images(0)

    assert len(images.names) == len(list(renamed.iterdir())) - 1
    assert stem not in images.stems
