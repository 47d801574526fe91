"""Images that change while they are trained on, and images that are left out."""

import shutil
from pathlib import Path

import pytest

from mimicry.common.errors import TrainingFailed
from mimicry.study.images import ImageFolder
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from tests.tuning.hf_diffusers.sd3.parts import make_args, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def images(studio: Studio, tmp_path: Path) -> Path:
    return Path(shutil.copytree(studio.images, tmp_path / "images"))


@pytest.mark.parametrize("change", ["altered", "removed"])
def test_an_adapter_of_images_that_were_changed_is_not_published(
    change: str, studio: Studio, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = sorted(images.iterdir())[1]
    content = victim.read_bytes()
    real = Trainer.run

    def run(trainer: Trainer, *arguments: object) -> None:
        real(trainer)
        # One byte of the same number of them.
        victim.write_bytes(
            content[:-1] + bytes([content[-1] ^ 1])
        ) if change == "altered" else victim.unlink()

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(TrainingFailed, match=f"images were changed while .*: '{victim.name}'; nothing is"):
        train(studio, tmp_path / "out", images=images)

    assert not (tmp_path / "out" / WEIGHTS).exists()
    assert training_run(tmp_path / "out")["status"] == "failed"
    monkeypatch.setattr(Trainer, "run", real)
    train(studio, tmp_path / "out", images=images)
    recorded = training_run(tmp_path / "out")["images"]
    files = [{key: image[key] for key in ("name", "size", "sha256")} for image in recorded]
    assert files == ImageFolder.read(images).records()


def test_images_that_are_left_out_are_not_looked_at(studio: Studio, images: Path, tmp_path: Path) -> None:
    victim = sorted(images.iterdir())[1]
    victim.write_bytes(b"no image")
    flags = (f"--leave_out={victim.stem}", "--leave_out=--never", f"--eval_data_dir={images}")
    assert make_args(studio, tmp_path / "out", *flags).inputs.leave_out == (victim.stem, "--never")
    train(studio, tmp_path / "out", *flags, images=images)

    run = training_run(tmp_path / "out")
    assert victim.name not in [image["name"] for image in run["images"]]
    assert len(run["images"]) == run["eval_loss"]["images"] == len(list(images.iterdir())) - 1
