"""What is checked of a configuration: class images and their settings, trackers that must be installed."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.drawn_images import SETTINGS, ClassImages, generated_name
from mimicry.tuning.hf_diffusers.spec import preflight
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.preflight import (
    chosen_trackers,
    class_images_of,
    generation_precision,
    generation_settings,
    report_problems,
)
from mimicry.tuning.options.config import TuningConfig
from tests.small_study import write_images
from tests.tuning.companions import PRIOR
from tests.tuning.lora_files import batch_problems
from tests.tuning.model_files import make_model

MODEL = BaseModel(folder=Path("nowhere"), name="lab/tiny", revision="0" * 40)


def config(folder: Path, **values: Any) -> TuningConfig:
    return TuningConfig(**PRIOR | {"class_data_dir": str(folder), "num_class_images": 4} | values)


def of(folder: Path, **values: Any) -> ClassImages:
    class_images = class_images_of(config(folder, **values))
    assert class_images is not None
    return class_images


def write_generated(folder: Path, *indices: int) -> None:
    write_images(folder, [generated_name(index).removesuffix(".png") for index in indices])


class TestImages:
    def test_without_prior_preservation_there_are_none(self) -> None:
        assert class_images_of(TuningConfig()) is None

    def test_all_are_missing_in_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        class_images = of(tmp_path / "class")
        assert class_images.missing() == [0, 1, 2, 3]
        assert class_images.images.names == tuple(map(generated_name, range(4)))

    def test_a_gap_is_filled_with_what_belongs_there(self, tmp_path: Path) -> None:
        write_generated(tmp_path, 0, 2)
        class_images = of(tmp_path)
        assert class_images.missing() == [1, 3]
        assert class_images.images.names == tuple(map(generated_name, range(4)))

    def test_those_of_a_user_count(self, tmp_path: Path) -> None:
        write_images(tmp_path, ["a", "z"])
        class_images = of(tmp_path)
        assert class_images.missing() == [0, 1]
        assert class_images.images.names == ("a.png", generated_name(0), generated_name(1), "z.png")

    def test_the_first_ones_are_used_where_there_are_more(self, tmp_path: Path) -> None:
        write_generated(tmp_path, *range(6))
        class_images = of(tmp_path)
        assert class_images.missing() == []
        assert class_images.images.names == tuple(map(generated_name, range(4)))

    def test_the_records_follow_content(self, tmp_path: Path) -> None:
        write_generated(tmp_path, *range(5))
        record = of(tmp_path).record()
        assert record["count"] == 4
        (tmp_path / generated_name(4)).write_bytes(b"not used")
        assert of(tmp_path).record() == record
        path = tmp_path / generated_name(1)
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        other = of(tmp_path).record()
        assert other["sha256"] != record["sha256"]
        assert other["listing_sha256"] == record["listing_sha256"] == of(tmp_path).listing_sha256()
        path.write_bytes(b"shorter")
        assert of(tmp_path).listing_sha256() != record["listing_sha256"]


class TestSettings:
    def asked(self, folder: Path, **values: Any) -> dict[str, Any]:
        return generation_settings(config(folder, **values), MODEL)

    def test_they_are_kept_beside_the_images_without_a_path(self, tmp_path: Path) -> None:
        asked = self.asked(tmp_path, resolution=64)
        of(tmp_path).record_settings(asked)
        assert json.loads((tmp_path / SETTINGS).read_text()) == asked
        assert str(tmp_path) not in (tmp_path / SETTINGS).read_text()
        assert of(tmp_path).problems(asked) == []
        assert of(tmp_path).images.names == tuple(map(generated_name, range(4)))

    @pytest.mark.parametrize(
        "change",
        [
            {"class_prompt": "a drawing"},
            {"resolution": 512},
            {"seed": 7},
            {"mixed_precision": "no"},
            {"variant": "fp16"},
            {"max_sequence_length": 256},
        ],
        ids=repr,
    )
    def test_other_settings_are_refused(self, change: dict[str, Any], tmp_path: Path) -> None:
        of(tmp_path).record_settings(self.asked(tmp_path))
        (problem,) = of(tmp_path).problems(self.asked(tmp_path, **change))
        assert str(tmp_path) in problem
        assert f"-> {next(iter(change.values()))!r}" in problem or "precision 'bf16' -> 'fp32'" in problem
        assert "name another folder" in problem

    def test_another_model_is_refused(self, tmp_path: Path) -> None:
        of(tmp_path).record_settings(self.asked(tmp_path))
        asked = generation_settings(config(tmp_path), replace(MODEL, revision="1" * 40))
        (problem,) = of(tmp_path).problems(asked)
        assert "base_model" in problem

    def test_how_many_does_not_matter_nor_how_many_at_a_time(self, tmp_path: Path) -> None:
        of(tmp_path).record_settings(self.asked(tmp_path))
        asked = self.asked(tmp_path, num_class_images=7, sample_batch_size=1, rank=4)
        assert of(tmp_path).problems(asked) == []

    def test_images_without_settings_are_taken_as_they_are(self, tmp_path: Path) -> None:
        write_images(tmp_path, ["a", "b", "c", "d"])
        assert of(tmp_path).problems(self.asked(tmp_path)) == []

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
    def test_settings_that_cannot_be_read_are_named(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / SETTINGS).write_bytes(content)
        (problem,) = of(tmp_path).problems(self.asked(tmp_path))
        assert f"{tmp_path / SETTINGS} cannot be read" in problem

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "class").touch()
        (problem,) = of(tmp_path / "class").problems(self.asked(tmp_path))
        assert problem.endswith("is not a folder; name one")

    def test_two_of_one_stem_are_named(self, tmp_path: Path) -> None:
        write_images(tmp_path, ["a"])
        (tmp_path / "a.jpg").touch()
        (problem,) = of(tmp_path).problems(None)
        assert "share the stem 'a'" in problem


@pytest.mark.parametrize(
    ("values", "precision"),
    [
        ({}, "bf16"),
        ({"mixed_precision": "no"}, "fp32"),
        ({"prior_generation_precision": "no"}, "fp32"),
        ({"prior_generation_precision": "FP16"}, "fp16"),
        ({"mixed_precision": "no", "prior_generation_precision": "bf16"}, "bf16"),
    ],
)
def test_the_precision_is_by_default_that_of_training(values: dict[str, Any], precision: str) -> None:
    assert generation_precision(TuningConfig(**PRIOR | values)) == precision


def install(patch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.0"

    patch.setattr(preflight, "version", version)


@pytest.mark.parametrize(
    ("installed", "report_to", "chosen", "missing"),
    [
        ((), "none", [], ""),
        (("tensorboard", "wandb"), "none", [], ""),
        (("tensorboard",), "tensorboard", ["tensorboard"], ""),
        (("wandb",), "TensorBoard", None, "tensorboard is not installed"),
        ((), "wandb", None, "wandb is not installed"),
        (("wandb",), "all", ["wandb"], ""),
        (("wandb", "tensorboard"), "all", ["tensorboard", "wandb"], ""),
        ((), "all", None, "tensorboard or wandb is not installed"),
    ],
)
def test_what_is_asked_for_must_be_installed(
    installed: tuple[str, ...],
    report_to: str,
    chosen: list[str] | None,
    missing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, *installed)
    config = TuningConfig(report_to=report_to)

    problems = report_problems(config)

    if chosen is None:
        (problem,) = problems
        assert missing in problem
        assert "pip install 'mimicry[reports]'" in problem
    else:
        assert problems == []
        assert chosen_trackers(config) == chosen


def test_a_batch_is_refused_before_it_begins(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("batch")
    config = TuningConfig(
        report_to="wandb", resolution=64, pretrained_model_name_or_path=str(make_model(folder / "model"))
    )
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        (problem,) = batch_problems(config, folder, 1, uploads=False)
    assert problem.startswith("--report-to wandb: ")
