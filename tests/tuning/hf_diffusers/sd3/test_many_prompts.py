"""Runs with captions and with prior preservation: the plain computation, exact resume, and what is drawn."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3 import adapted_transformer
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.options.config import WEIGHTING_SCHEMES
from tests.tuning.hf_diffusers.sd3.many_prompts import write_captioned, write_class_images
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.sd3.plain import STEADY, assert_trains_alike, trainer_and_plain
from tests.tuning.hf_diffusers.sd3.resuming import RUN, assert_same_end, stopped
from tests.tuning.hf_diffusers.studio import Studio, training_run

WEIGHTS = "pytorch_lora_weights.safetensors"
# Every scheme with and without preconditioning, with each feature.
GRID = [
    (which, scheme, precondition, (1 + row % 2, 2))
    for which in ("captions", "prior")
    for row, scheme in enumerate(WEIGHTING_SCHEMES)
    for precondition in (0, 1)
]
GRID += [("both", "cosmap", 1, (2, 1)), ("captions", "logit_normal", 1, (3, 1)), ("both", "mode", 0, (1, 1))]


def inputs(which: str, studio: Studio, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return flags, and what the plain training is told, for runs with captions, class images or both."""
    flags: list[str] = []
    told: dict[str, Any] = {"images": studio.images}
    if which in ("captions", "both"):
        told["images"], told["captions"] = write_captioned(studio, folder / "captioned")
        flags.append("--captions")
    if which in ("prior", "both"):
        told["class_images"], words = write_class_images(studio, folder / "class")
        flags += [*words, "--prior_loss_weight=0.7"]
    return flags, told


@pytest.mark.parametrize(("which", "scheme", "precondition", "batch"), GRID)
def test_gradients_and_steps_are_those_of_the_plain_training(
    which: str, scheme: str, precondition: int, batch: tuple[int, int], studio: Studio, tmp_path: Path
) -> None:
    flags, told = inputs(which, studio, tmp_path)
    trainer, plain = trainer_and_plain(
        studio,
        tmp_path / "out",
        f"--weighting_scheme={scheme}",
        f"--precondition_outputs={precondition}",
        f"--train_batch_size={batch[0]}",
        f"--gradient_accumulation_steps={batch[1]}",
        "--max_grad_norm=0.05",
        *STEADY,
        *flags,
        **told,
    )
    assert_trains_alike(trainer, plain)
    assert len(plain.known_prompts) > 1


@pytest.mark.parametrize(("which", "size", "precision"), [("captions", 3, "bf16"), ("both", 2, "no")])
def test_the_table_changes_no_byte_of_the_adapter(
    which: str, size: int, precision: str, studio: Studio, tmp_path: Path
) -> None:
    flags, told = inputs(which, studio, tmp_path)
    flags += [f"--train_batch_size={size}", f"--mixed_precision={precision}", "--upcast_before_saving"]
    flags += ["--max_train_steps=2", "--learning_rate=0.01"]
    for name, more in (("without", ()), ("with", ("--conditioning_table",))):
        train(studio, tmp_path / name, *flags, *more, images=told["images"])
    assert (tmp_path / "without" / WEIGHTS).read_bytes() == (tmp_path / "with" / WEIGHTS).read_bytes()
    assert training_run(tmp_path / "with")["memory"]["conditioning_table"] is True


OPTIONS = ("--cache_latents", "--lora_dropout=0.3", "--conditioning_table")


@pytest.fixture(scope="module")
def folder(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both features that was never stopped, with its images. Tests must not change it."""
    folder = tmp_path_factory.mktemp("both")
    flags, told = inputs("both", studio, folder)
    train(studio, folder / "whole", *RUN, *OPTIONS, *flags, images=told["images"])
    return folder


class TestExactResume:
    def flags(self, folder: Path) -> tuple[str, ...]:
        run = training_run(folder / "whole")
        return tuple(word for word in run["command"][1:] if not word.startswith("--output_dir"))

    def test_after_a_step(self, folder: Path, studio: Studio, tmp_path: Path) -> None:
        stopped(studio, tmp_path, 3, *self.flags(folder))
        train(studio, tmp_path, *self.flags(folder))
        assert_same_end(tmp_path, folder / "whole")
        assert training_run(tmp_path)["resumed_from"] == 3

    def test_not_with_other_captions_and_class_images(
        self, folder: Path, studio: Studio, tmp_path: Path
    ) -> None:
        for name in ("captioned", "class"):
            shutil.copytree(folder / name, tmp_path / name)
        flags = [word.replace(str(folder), str(tmp_path)) for word in self.flags(folder)]
        stopped(studio, tmp_path / "out", 2, *flags)
        next((tmp_path / "captioned").glob("*.txt")).write_text("another")
        shutil.copyfile(min(studio.images.iterdir()), min((tmp_path / "class").iterdir()))
        train(studio, tmp_path / "out", *flags)
        run = training_run(tmp_path / "out")
        assert run["resumed_from"] is None
        assert [text for text in run["warnings"] if "belongs to another run" in text] == [
            "not resumed from checkpoint-2: it belongs to another run: other captions, other class images; "
            "it is set aside"
        ]


def batches(trainer: Trainer, count: int = 8) -> list[ForwardBatch]:
    return [trainer.batches.make(first) for first in range(count)]


class TestCaptions:
    def test_those_of_the_original_hold_for_another_condition(self, studio: Studio, tmp_path: Path) -> None:
        original, captions = write_captioned(studio, tmp_path / "captioned")
        last = max(path.stem for path in studio.images.iterdir())
        for name, images in (("original", original), ("mist", studio.mist)):
            words = ("--captions", f"--caption_data_dir={original}", "--max_train_steps=1")
            train(studio, tmp_path / name, *words, images=images)
        runs = [training_run(tmp_path / name) for name in ("original", "mist")]
        for run in runs:
            assert {Path(image["name"]).stem: image["caption"] for image in run["images"]} == {
                **captions,
                last: None,
            }
            assert run["paths"]["caption_data_dir"] == str(original)
            (warning,) = (text for text in run["warnings"] if "caption" in text)
            assert warning.startswith("1 of 4 images have no caption")
            assert str(tmp_path) not in str([run["images"], run["warnings"], run["options"]])
        for key in ("recipe_hash", "draws_sha256"):
            assert runs[0][key] == runs[1][key]

    def test_what_cannot_be_used_is_named_before_anything_is_done(
        self, studio: Studio, tmp_path: Path
    ) -> None:
        images, _ = write_captioned(studio, tmp_path / "captioned")
        (images / "metadata.jsonl").write_text("{\n[]\n")
        with pytest.raises(TrainingFailed) as caught:
            make_trainer(studio, tmp_path / "out", "--captions", images=images)
        assert len(caught.value.problems) == 2
        missing = f"--caption_data_dir={tmp_path / 'nowhere'}"
        with pytest.raises(TrainingFailed, match=r"--caption_data_dir: there is no image in .*nowhere"):
            make_trainer(studio, tmp_path / "out", "--captions", missing)
        assert not (tmp_path / "out").exists()

    def test_without_the_switch_they_are_not_looked_at(self, studio: Studio, tmp_path: Path) -> None:
        images, _ = write_captioned(studio, tmp_path / "captioned")
        (images / "metadata.jsonl").write_text("{")
        trainer = make_trainer(studio, tmp_path / "out", images=images)
        assert trainer.batches.prompt_plan.texts == (trainer.config.instance_prompt,)


class TestPriorPreservation:
    def test_the_samples_of_the_style_are_those_of_a_run_without(
        self, studio: Studio, tmp_path: Path
    ) -> None:
        flags, _ = inputs("prior", studio, tmp_path)
        plain = make_trainer(studio, tmp_path / "plain", "--random_flip")
        trainer = make_trainer(studio, tmp_path / "prior", "--random_flip", *flags)
        for ours, theirs in zip(batches(trainer), batches(plain), strict=True):
            assert ours.samples[:1] == theirs.samples
            for name in ("latents_BCHW", "noise_BCHW", "sigmas_B", "sequence_BLD", "pooled_projections"):
                assert torch.equal(getattr(ours, name)[:1], getattr(theirs, name)), name
        assert list(plain.schedule.own_indices()) == list(trainer.schedule.own_indices())

    def test_class_samples_have_draws_of_their_own(self, studio: Studio, tmp_path: Path) -> None:
        """Even on the very images of the style nothing is drawn alike but by chance."""
        words = ("--with_prior_preservation", f"--class_data_dir={studio.images}", "--class_prompt=art")
        trainer = make_trainer(studio, tmp_path, "--random_flip", "--num_class_images=4", *words)
        found = batches(trainer, 12)
        pairs = [batch.samples for batch in found]
        assert {(style.kind, other.kind) for style, other in pairs} == {("", "class_")}
        assert all(style.index == other.index for style, other in pairs)
        assert [style.image for style, _ in pairs] != [other.image for _, other in pairs]
        assert {other.image for _, other in pairs} == {0, 1, 2, 3}
        assert all(style.crop.across != other.crop.across for style, other in pairs)
        assert {other.crop.flipped for _, other in pairs} == {False, True}
        for batch in found:
            assert not torch.equal(batch.noise_BCHW[0], batch.noise_BCHW[1])
        assert any(first != second for first, second in (batch.timestep_indices for batch in found))

    def test_the_hash_of_draws_covers_them(self, studio: Studio, tmp_path: Path) -> None:
        flags, told = inputs("prior", studio, tmp_path)
        flags.append("--max_train_steps=3")  # each class image once
        train(studio, tmp_path / "with", *flags)
        train(studio, tmp_path / "without")
        first = min(told["class_images"].iterdir())
        first.rename(first.with_name(f"own a{first.suffix}"))
        train(studio, tmp_path / "renamed", *flags)
        runs = [training_run(tmp_path / name) for name in ("with", "without", "renamed")]
        assert len({run["draws_sha256"] for run in runs}) == 3
        assert ["class_images" in run for run in runs] == [True, False, True]
        assert runs[0]["class_images"]["count"] == 3
        assert runs[0]["class_images"] != runs[2]["class_images"]

    def test_the_weight_is_that_of_the_class_loss(self, studio: Studio, tmp_path: Path) -> None:
        flags, _ = inputs("prior", studio, tmp_path)
        losses = []
        for weight in ("0", "0.7", "1.7"):
            trainer = make_trainer(studio, tmp_path / weight, *flags, f"--prior_loss_weight={weight}")
            losses.append(trainer.model.loss(trainer.batches.make(0)).item())
        alone = make_trainer(studio, tmp_path / "alone")
        assert losses[0] == pytest.approx(alone.model.loss(alone.batches.make(0)).item(), rel=1e-6)
        assert losses[1] - losses[0] == pytest.approx(0.7 * (losses[2] - losses[1]), rel=1e-4)

    def test_memory_is_estimated_for_the_doubled_batch(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags, _ = inputs("prior", studio, tmp_path)
        trainer = make_trainer(studio, tmp_path, "--gradient_checkpointing", "--train_batch_size=2", *flags)
        assert trainer.schedule.forward_batch_size == 4
        asked: dict[str, Any] = {}
        monkeypatch.setattr(adapted_transformer, "checkpoint_blocks", lambda *_, **facts: asked.update(facts))
        make_trainer(studio, tmp_path, "--gradient_checkpointing", "--train_batch_size=2", *flags)
        assert asked["batch_size"] == 4

    def test_the_evaluation_fills_batches_of_the_real_size(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags, _ = inputs("both", studio, tmp_path)
        seen: list[tuple[int, set[int]]] = []
        predict = AdaptedTransformer.predict

        def watched(model: AdaptedTransformer, batch: ForwardBatch) -> torch.Tensor:
            if not batch.samples:
                seen.append((len(batch.latents_BCHW), set(batch.prompt_indices)))
            return predict(model, batch)

        monkeypatch.setattr(AdaptedTransformer, "predict", watched)
        words = (f"--eval_data_dir={studio.images}", "--conditioning_table", "--train_batch_size=3")
        captioned = tmp_path / "captioned"
        train(studio, tmp_path / "out", *flags, *words, "--max_train_steps=1", images=captioned)
        # 4 images at 4 levels, 6 at a time, before and after: always with the instance prompt.
        assert seen == [(6, {0})] * 6
