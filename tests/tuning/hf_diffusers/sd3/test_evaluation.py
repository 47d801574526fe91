"""The evaluation loss: what it is, that it tells learning from noise, and that training does not feel it."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

from mimicry.common.errors import TrainingFailed
from mimicry.study.images import read_rgb
from mimicry.study.tree import State
from mimicry.tuning.hf_diffusers.sd3 import evaluation
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchMaker, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.evaluation import (
    Evaluation,
    eval_batch_size,
    eval_timestep_indices,
    find_eval_set,
)
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.training.latents import apply_crop, to_pixels
from mimicry.tuning.hf_diffusers.training.rng import Crop, normal
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import make_args, make_trainer, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

WEIGHTS = "pytorch_lora_weights.safetensors"
LEVELS = (125, 375, 625, 875)
SHIFT = 3.0
STEPS = 2


def on(images: Path) -> str:
    return f"--eval_data_dir={images}"


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def evaluation_of(trainer: Trainer, studio: Studio, *flags: str) -> Evaluation:
    """Return an evaluation of `trainer` on the original art."""
    args = make_args(studio, trainer.record.output_dir, *flags, on(studio.images))
    images = find_eval_set(args, trainer.batches.latents, trainer.record)
    return Evaluation(trainer.model, trainer.batches, images, trainer.record)


class TestTimesteps:
    @pytest.mark.parametrize(
        ("asked", "levels", "rows"),
        [
            (4, 1000, [125, 375, 625, 875]),
            (1, 1000, [500]),
            (3, 1000, [166, 500, 833]),
            (0, 1000, []),
            (100, 3, [0, 1, 2]),
        ],
    )
    def test_they_are_the_middles_of_equal_parts(self, asked: int, levels: int, rows: list[int]) -> None:
        assert eval_timestep_indices(TuningConfig(eval_timesteps=asked), levels) == rows

    @pytest.mark.parametrize("levels", [1, 2, 50, 1000])
    def test_they_are_rows_of_the_table_and_all_different(self, levels: int) -> None:
        for asked in range(101):
            rows = eval_timestep_indices(TuningConfig(eval_timesteps=asked), levels)
            assert len(set(rows)) == len(rows) == min(asked, levels)
            assert set(rows) <= set(range(levels))


def plain_loss(studio: Studio, resolution: int = 32) -> float:
    """Return the base model's loss on the original art, written down without the trainer's parts."""
    folder = studio.base_model
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
    transformer: Any = SD3Transformer2DModel.from_pretrained(folder / "transformer").eval()
    errors = []
    with torch.no_grad():
        prompt, _, pooled, _ = StableDiffusion3Pipeline.from_pretrained(folder).encode_prompt(
            "a painting in the style of sks",
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=77,
        )
        for path in sorted(studio.images.iterdir()):
            posterior = vae.encode(to_pixels(apply_crop(read_rgb(path), Crop(), resolution))).latent_dist
            for level in LEVELS:
                shape = tuple(posterior.mean.shape[1:])
                drawn = torch.from_numpy(normal(42, "eval_vae", level, path.stem, shape))
                noise = torch.from_numpy(normal(42, "eval_noise", level, path.stem, shape))
                clean = posterior.mean + posterior.std * drawn
                clean = (clean - vae.config.shift_factor) * vae.config.scaling_factor
                even = (1000 - level) / 1000
                sigma = SHIFT * even / (1 + (SHIFT - 1) * even)
                velocity = transformer(
                    hidden_states=(1 - sigma) * clean + sigma * noise,
                    encoder_hidden_states=prompt,
                    pooled_projections=pooled,
                    timestep=torch.tensor([1000 * sigma]),
                ).sample
                errors.append(float(((velocity - (noise - clean)) ** 2).mean()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--train_batch_size=3",),  # the last of six batches is filled up
        ("--cache_latents", "--center_crop"),
        ("--weighting_scheme=sigma_sqrt", "--precondition_outputs=0", "--random_flip"),
        ("--rank=2", "--learning_rate=0.01", "--gradient_checkpointing"),
    ],
    ids=["alone", "batches", "cached", "another loss", "another adapter"],
)
def test_before_training_it_is_the_plain_loss_of_the_base_model_however_it_is_trained(
    flags: tuple[str, ...], studio: Studio, tmp_path: Path
) -> None:
    train(studio, tmp_path, on(studio.images), *flags)
    assert metrics(tmp_path)[0] == {"step": 0, "eval_loss": pytest.approx(plain_loss(studio), rel=1e-5)}


def test_runs_of_other_seeds_start_from_the_same_value(studio: Studio, tmp_path: Path) -> None:
    starts, ends = [], []
    for seed in (42, 7):
        out = tmp_path / str(seed)
        train(studio, out, on(studio.images), f"--seed={seed}")
        losses = [line["eval_loss"] for line in metrics(out) if "eval_loss" in line]
        starts.append(losses[0])
        ends.append(losses[-1])
    assert starts[0] == starts[1]
    assert ends[0] != ends[1]


def test_it_falls_when_the_images_are_learnt(studio: Studio, tmp_path: Path) -> None:
    train(
        studio,
        tmp_path,
        on(studio.images),
        *("--max_train_steps=60", "--learning_rate=0.01", "--train_batch_size=4", "--center_crop"),
    )
    evaluation = training_run(tmp_path)["eval_loss"]
    assert evaluation["end"] < 0.9 * evaluation["start"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_all_conditions_of_an_artist_start_from_the_same_value(
    precision: str, studio: Studio, tmp_path: Path
) -> None:
    for name, images in (("original", studio.images), ("mist", studio.mist)):
        train(
            studio,
            tmp_path / name,
            on(studio.images),
            f"--mixed_precision={precision}",
            "--learning_rate=0.01",
            images=images,
        )
    original, mist = (training_run(tmp_path / name)["eval_loss"] for name in ("original", "mist"))
    assert original["start"] == mist["start"]
    assert original["end"] != mist["end"]


@pytest.mark.parametrize(
    "flags",
    [("--mixed_precision=no",), ("--mixed_precision=bf16", "--cache_latents", "--train_batch_size=2")],
    ids=["plain", "cached, bf16"],
)
def test_no_bit_of_the_adapter_depends_on_it(flags: tuple[str, ...], studio: Studio, tmp_path: Path) -> None:
    flags = (*flags, "--upcast_before_saving", "--center_crop", "--max_train_steps=3")
    train(studio, tmp_path / "without", *flags)
    train(studio, tmp_path / "with", *flags, on(studio.images))
    train(studio, tmp_path / "on others", *flags, on(studio.mist), "--eval_timesteps=7")
    without, with_it, on_others = (training_run(tmp_path / name) for name in ("without", "with", "on others"))
    assert weights(tmp_path / "without") == weights(tmp_path / "with") == weights(tmp_path / "on others")
    for run in (with_it, on_others):
        for key in ("draws_sha256", "final_loss", "mean_loss", "recipe_hash"):
            assert run[key] == without[key]
    assert with_it["eval_loss"] != on_others["eval_loss"]


@pytest.mark.parametrize("flags", [(), ("--conditioning_table", "--mixed_precision=bf16")])
def test_batches_made_ahead_have_the_same_values(
    flags: tuple[str, ...], studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    make = BatchMaker.make

    def watched(maker: BatchMaker, *words: Any, **more: Any) -> ForwardBatch:
        threads.append(threading.current_thread().name.startswith("prefetch"))
        return make(maker, *words, **more)

    monkeypatch.setattr(BatchMaker, "make", watched)
    losses = []
    for count in (0, 2):
        threads.clear()
        # The last of six batches is filled up.
        words = (*flags, "--train_batch_size=3", f"--dataloader_num_workers={count}")
        train(studio, tmp_path / str(count), on(studio.images), *words)
        assert threads == [count > 0] * (6 + STEPS + 6)
        losses.append([line["eval_loss"] for line in metrics(tmp_path / str(count)) if "eval_loss" in line])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


class TestBatchSize:
    """On a GPU an evaluation has other batches than the training; here it is made to have three samples."""

    FLAGS = ("--mixed_precision=bf16", "--center_crop", "--learning_rate=0.01")

    @pytest.fixture
    def by_three(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluation, "eval_batch_size", lambda device, training_size: 3)

    @pytest.fixture
    def sizes(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The sizes of the batches that were predicted, without gradients."""
        found: list[int] = []
        predict = AdaptedTransformer.predict

        def watched(model: AdaptedTransformer, batch: ForwardBatch) -> torch.Tensor:
            if not torch.is_grad_enabled():
                found.append(len(batch.latents_BCHW))
            return predict(model, batch)

        monkeypatch.setattr(AdaptedTransformer, "predict", watched)
        return found

    @staticmethod
    def losses(folder: Path) -> list[float]:
        return [line["eval_loss"] for line in metrics(folder) if "eval_loss" in line]

    def test_a_gpu_has_its_own_and_the_cpu_that_of_training(self) -> None:
        gpu, cpu = torch.device("cuda"), torch.device("cpu")
        assert [eval_batch_size(gpu, size) for size in (1, 2, 16)] == [4, 4, 4]
        assert [eval_batch_size(cpu, size) for size in (1, 2, 16)] == [1, 2, 16]

    def test_the_adapter_is_the_same_and_the_losses_differ_by_rounding(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
    ) -> None:
        train(studio, tmp_path / "one", *self.FLAGS, on(studio.images), "--conditioning_table")
        assert sizes == 2 * 16 * [1]
        sizes.clear()
        monkeypatch.setattr(evaluation, "eval_batch_size", lambda device, training_size: 3)
        train(studio, tmp_path / "three", *self.FLAGS, on(studio.images), "--conditioning_table")
        # The last of six batches is filled up.
        assert sizes == 2 * 6 * [3]
        assert weights(tmp_path / "one") == weights(tmp_path / "three")
        assert training_run(tmp_path / "three")["warnings"] == []
        one, three = self.losses(tmp_path / "one"), self.losses(tmp_path / "three")
        assert three == pytest.approx(one, rel=1e-3)
        assert abs(three[1] - three[0]) > 10 * max(abs(a - b) for a, b in zip(one, three, strict=True))

    @pytest.mark.usefixtures("by_three")
    @pytest.mark.parametrize("training", ["--train_batch_size=1", "--train_batch_size=4"])
    def test_it_has_a_conditioning_table_of_its_own(
        self, training: str, studio: Studio, tmp_path: Path
    ) -> None:
        """A row that was computed for another size of batch is rounded otherwise."""
        with_table, without = tmp_path / "with", tmp_path / "without"
        for folder, flags in ((with_table, ["--conditioning_table"]), (without, [])):
            train(studio, folder, "--center_crop", on(studio.images), training, *flags)
        assert training_run(with_table)["memory"]["conditioning_table"] is True
        assert training_run(without)["memory"]["conditioning_table"] is False
        assert self.losses(with_table) == self.losses(without)
        assert weights(with_table) == weights(without)

    @pytest.mark.usefixtures("by_three")
    def test_with_too_little_memory_it_goes_on_in_batches_of_trainings_size(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
    ) -> None:
        predict = AdaptedTransformer.predict

        def short_of_memory(model: AdaptedTransformer, batch: ForwardBatch) -> torch.Tensor:
            # The second batch of the evaluation, and all others of its size.
            if len(batch.latents_BCHW) == 3 and sizes:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
            return predict(model, batch)

        monkeypatch.setattr(AdaptedTransformer, "predict", short_of_memory)
        flags = (*self.FLAGS, on(studio.images), "--conditioning_table", "--train_batch_size=2")
        train(studio, tmp_path / "short", *flags, "--dataloader_num_workers=2")
        # 16 samples by three: the others by two, the odd one of a group filled up.
        assert sizes == [3] + 4 * [2, 2] + [2] + 5 * [2, 2] + [2]
        (warning,) = training_run(tmp_path / "short")["warnings"]
        assert warning == "out of GPU memory: evaluation batch size reduced to 2"
        monkeypatch.undo()
        train(studio, tmp_path / "plenty", *flags)
        assert weights(tmp_path / "short") == weights(tmp_path / "plenty")
        assert self.losses(tmp_path / "short") == pytest.approx(self.losses(tmp_path / "plenty"), rel=1e-3)

    def test_it_is_an_error_where_the_batches_are_as_small_as_those_of_training(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_memory(model: AdaptedTransformer, batch: ForwardBatch) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

        monkeypatch.setattr(AdaptedTransformer, "predict", no_memory)
        with pytest.raises(TrainingFailed, match="out of GPU memory"):
            train(studio, tmp_path, on(studio.images))


class TestRecords:
    def test_it_stands_in_the_metrics_and_in_the_record(self, studio: Studio, tmp_path: Path) -> None:
        train(studio, tmp_path, on(studio.images))
        lines = metrics(tmp_path)
        assert [line["step"] for line in lines] == [0, 1, 2, STEPS]
        assert [set(line) == {"step", "eval_loss"} for line in lines] == [True, False, False, True]
        run = training_run(tmp_path)
        assert run["eval_loss"] == {
            "start": lines[0]["eval_loss"],
            "end": lines[-1]["eval_loss"],
            "on": "in-sample",
            "images": 4,
            "timesteps": [pytest.approx(value, abs=1e-3) for value in (954.545, 833.333, 642.857, 300)],
        }
        assert run["steps"] == STEPS
        assert run["paths"]["eval_data_dir"] == str(studio.images)
        assert run["stage_seconds"]["evaluate"] > 0

    def test_of_images_with_other_names_nobody_knows_whether_they_are_trained_on(
        self, studio: Studio, tmp_path: Path
    ) -> None:
        others = tmp_path / "others"
        others.mkdir()
        for path in studio.images.iterdir():
            (others / f"other_{path.name}").write_bytes(path.read_bytes())
        train(studio, tmp_path / "out", on(others))
        assert training_run(tmp_path / "out")["eval_loss"]["on"] == "unknown"

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            ((), "no --eval_data_dir was given"),
            (("--eval_data_dir=images", "--eval_timesteps=0"), "--eval_timesteps is 0"),
        ],
        ids=["no folder", "switched off"],
    )
    def test_that_there_is_none_is_said(
        self,
        flags: tuple[str, ...],
        reason: str,
        studio: Studio,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        train(studio, tmp_path, *flags)
        assert f"no evaluation: {reason}\n" in capsys.readouterr().out
        run = training_run(tmp_path)
        assert run["eval_loss"] == {"skipped": reason}
        assert run["warnings"] == []
        assert "evaluate" not in run["stage_seconds"]
        assert [line["step"] for line in metrics(tmp_path)] == [1, 2]

    @pytest.mark.parametrize("fault", ["missing", "empty", "torn", "twins"])
    def test_images_that_cannot_be_used_cost_no_training(
        self, fault: str, studio: Studio, tmp_path: Path
    ) -> None:
        folder = tmp_path / "evaluated"
        if fault != "missing":
            folder.mkdir()
        if fault == "torn":
            (folder / "torn.png").write_bytes(b"no image")
        if fault == "twins":
            for name in ("one.png", "one.jpg"):
                shutil.copyfile(next(iter(studio.images.iterdir())), folder / name)
        train(studio, tmp_path / "out", on(folder))
        run = training_run(tmp_path / "out")
        (warning,) = run["warnings"]
        assert warning == f"no evaluation: {run['eval_loss']['skipped']}"
        assert str(tmp_path) not in warning
        assert run["status"] == "complete"

    def test_twenty_images_are_enough(
        self, studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        many = tmp_path / "many"
        many.mkdir()
        path = next(path for path in sorted(studio.images.iterdir()) if path.suffix == ".jpg")
        for number in range(23):
            shutil.copyfile(path, many / f"{number:02}.jpg")
        trainer = make_trainer(studio, tmp_path / "out")
        args = make_args(studio, tmp_path / "out", on(many))
        chosen = find_eval_set(args, trainer.batches.latents, trainer.record)
        assert chosen is not None
        assert chosen.stems == [f"{number:02}" for number in range(20)]
        assert "encoding 20 images for the evaluation, the first by name; 3 more are left out\n" in (
            capsys.readouterr().out
        )

    def test_a_step_is_evaluated_once(self, studio: Studio, tmp_path: Path) -> None:
        """As in a run that was taken up again and knows the loss of its start."""
        trainer = make_trainer(studio, tmp_path)
        trainer.record.history.eval_losses[0] = 0.75
        evaluation = evaluation_of(trainer, studio)
        for step in (0, STEPS, STEPS):
            evaluation.evaluate_at(step)
        assert [line["step"] for line in metrics(tmp_path)] == [STEPS]
        trainer.record.write(State.RUNNING)
        assert training_run(tmp_path)["eval_loss"]["start"] == 0.75


class TestVae:
    def test_it_is_read_once_and_encodes_no_file_twice(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[object] = []
        encoded: list[torch.Tensor] = []
        from_pretrained, encode = AutoencoderKL.from_pretrained.__func__, AutoencoderKL.encode

        def watched_read(cls: Any, *words: Any, **more: Any) -> Any:
            read.append(words)
            return from_pretrained(cls, *words, **more)

        def watched_encode(vae: AutoencoderKL, pixels: torch.Tensor) -> Any:
            encoded.append(pixels)
            return encode(vae, pixels)

        monkeypatch.setattr(AutoencoderKL, "from_pretrained", classmethod(watched_read))
        monkeypatch.setattr(AutoencoderKL, "encode", watched_encode)
        flags = ("--cache_latents", "--center_crop", "--max_train_steps=8")
        link = tmp_path / "the same folder"
        link.symlink_to(studio.images)

        train(studio, tmp_path / "same", *flags, on(link))
        assert (len(read), len(encoded)) == (1, 4)

        train(studio, tmp_path / "other", *flags, on(studio.images), images=studio.mist)
        assert (len(read), len(encoded)) == (2, 4 + 8)


class TestLoop:
    def test_the_transformer_is_in_evaluation_for_so_long_only(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modes: list[tuple[bool, bool]] = []
        predict = AdaptedTransformer.predict

        def watched(model: AdaptedTransformer, batch: Any) -> torch.Tensor:
            modes.append((model.transformer.training, torch.is_grad_enabled()))
            return predict(model, batch)

        monkeypatch.setattr(AdaptedTransformer, "predict", watched)
        train(studio, tmp_path, on(studio.images), "--train_batch_size=16")
        assert modes == [(False, False), (True, True), (True, True), (False, False)]

    @pytest.mark.parametrize(("step", "words"), [(0, "the base model is broken"), (STEPS, "--learning-rate")])
    def test_a_loss_that_is_no_number_ends_the_run(
        self, step: int, words: str, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trainer = make_trainer(studio, tmp_path)
        evaluation = evaluation_of(trainer, studio)
        monkeypatch.setattr(
            AdaptedTransformer,
            "predict",
            lambda model, batch: torch.full_like(batch.latents_BCHW, float("nan")),
        )
        with pytest.raises(TrainingFailed, match=f"evaluation loss of step {step} is nan: .*{words}"):
            evaluation.evaluate_at(step)
        assert metrics(tmp_path) == []

    def test_what_diverged_in_the_last_step_leaves_no_adapter(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take_step = Trainer.take_step

        def spoil(trainer: Trainer, step: int) -> tuple[float, float]:
            loss = take_step(trainer, step)
            if step == STEPS:
                for value in trainer.model.parameters.values():
                    value.data.fill_(float("inf"))
            return loss

        monkeypatch.setattr(Trainer, "take_step", spoil)
        with pytest.raises(TrainingFailed, match="training diverged"):
            train(studio, tmp_path, on(studio.images))
        assert training_run(tmp_path)["status"] == "failed"
        assert not (tmp_path / WEIGHTS).exists()


def test_the_flag_is_no_hyper_parameter(studio: Studio, tmp_path: Path) -> None:
    args = make_args(studio, tmp_path, "--eval-data-dir=x")
    assert args.inputs.eval_data_dir == Path("x")
    assert make_args(studio, tmp_path).inputs.eval_data_dir is None
    assert not hasattr(args.config, "eval_data_dir")
