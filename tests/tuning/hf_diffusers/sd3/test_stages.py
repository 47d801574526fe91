"""A whole training in this process: what may change its result, what must not, and what is alive when."""

import gc
import hashlib
import json
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from mimicry.common.errors import TrainingFailed
from mimicry.study.tree import State
from mimicry.tuning.hf_diffusers.sd3 import trainer, validation
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.latents import LatentSource, load_vae
from mimicry.tuning.hf_diffusers.training.optimizers import make_optimizer
from tests.tuning.hf_diffusers.sd3.parts import make_args, train
from tests.tuning.hf_diffusers.studio import Studio, training_run
from tests.tuning.lora_files import adapter_spec, judge

WEIGHTS = "pytorch_lora_weights.safetensors"


class Recorder:
    """Everything that a training draws by chance, as it comes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.streams: dict[tuple[object, ...], str] = {}
        self.samples: list[rng.Sample] = []
        self.batches: list[ForwardBatch] = []
        normal, make_batch, sample = rng.normal, BatchSource.make, rng.SamplePlan.sample

        def watched_normal(seed: int, purpose: str, index: int, name: str, shape: tuple[int, ...]) -> Any:
            values = normal(seed, purpose, index, name, shape)
            self.streams[seed, purpose, index, name, shape] = hashlib.sha256(values.tobytes()).hexdigest()
            return values

        def watched_batch(batches: BatchSource, first: int) -> ForwardBatch:
            self.batches.append(make_batch(batches, first))
            return self.batches[-1]

        def watched_sample(plan: rng.SamplePlan, index: int) -> rng.Sample:
            self.samples.append(sample(plan, index))
            return self.samples[-1]

        patch.setattr(rng, "normal", watched_normal)
        patch.setattr(BatchSource, "make", watched_batch)
        patch.setattr(rng.SamplePlan, "sample", watched_sample)


def weights(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("cached", [(), ("--cache_latents",)], ids=["uncached", "cached"])
def test_two_conditions_draw_the_same_by_chance(
    cached: tuple[str, ...], studio: Studio, tmp_path: Path
) -> None:
    flags = ("--random_flip", "--max_train_steps=3", "--gradient_accumulation_steps=2", *cached)
    recorders = []
    for name, images in (("original", studio.images), ("mist", studio.mist)):
        with pytest.MonkeyPatch.context() as patch:
            recorders.append(Recorder(patch))
            train(studio, tmp_path / name, *flags, images=images)
    original, mist = recorders
    assert {key[1] for key in original.streams} == {"lora_A", "vae", "noise"}
    assert original.streams == mist.streams
    assert original.samples == mist.samples
    assert len({sample.crop for sample in original.samples}) == 6
    assert len(original.batches) == len(mist.batches) == 6
    for ours, theirs in zip(original.batches, mist.batches, strict=True):
        assert torch.equal(ours.noise_BCHW, theirs.noise_BCHW)
        assert torch.equal(ours.timesteps_B, theirs.timesteps_B)
        assert torch.equal(ours.sigmas_B, theirs.sigmas_B)
        assert not torch.equal(ours.latents_BCHW, theirs.latents_BCHW)
    first, second = (training_run(tmp_path / name) for name in ("original", "mist"))
    assert first["draws_sha256"] == second["draws_sha256"]
    assert first["recipe_hash"] == second["recipe_hash"]
    assert weights(tmp_path / "original") != weights(tmp_path / "mist")


@pytest.mark.parametrize("flag", ["--gradient_checkpointing", "--cache_latents"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_saves_memory_changes_no_bit(
    flag: str, dropout: float, precision: str, studio: Studio, tmp_path: Path
) -> None:
    flags = (
        *(f"--mixed_precision={precision}", f"--lora_dropout={dropout}"),
        *("--upcast_before_saving", "--max_train_steps=3"),
    )
    train(studio, tmp_path / "without", *flags)
    train(studio, tmp_path / "with", *flags, flag)
    assert weights(tmp_path / "without") == weights(tmp_path / "with")
    first, second = (training_run(tmp_path / name) for name in ("without", "with"))
    assert first["recipe_hash"] == second["recipe_hash"]
    assert first["final_loss"] == second["final_loss"]


@pytest.mark.parametrize("worker_count", [1, 3])
@pytest.mark.parametrize("flags", [("--cache_latents",), ("--train_batch_size=2", "--lora_dropout=0.2")])
def test_batches_made_ahead_change_no_bit(
    flags: tuple[str, ...], worker_count: int, studio: Studio, tmp_path: Path
) -> None:
    flags += ("--upcast_before_saving", "--gradient_accumulation_steps=3", "--random_flip")
    train(studio, tmp_path / "in line", *flags)
    train(studio, tmp_path / "ahead", *flags, f"--dataloader_num_workers={worker_count}")
    assert weights(tmp_path / "in line") == weights(tmp_path / "ahead")
    first, second = (training_run(tmp_path / name) for name in ("in line", "ahead"))
    for key in ("recipe_hash", "final_loss", "draws_sha256", "steps"):
        assert first[key] == second[key]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize(
    "change",
    [
        *("--seed=43", "--instance_prompt=a photo", "--learning_rate=0.002", "--center_crop"),
        *("--logit_mean=1", "--lora_dropout=0.1", "--lora_layers=attn.to_k", "--lora_blocks=1"),
        *("--repeats=2", "--lr_scheduler=linear", "--scale_lr", "--num_train_epochs=1"),
    ],
)
def test_what_belongs_to_the_recipe_changes_the_adapter(change: str, studio: Studio, tmp_path: Path) -> None:
    flags = ("--train_batch_size=2",)
    train(studio, tmp_path / "one", *flags, "--max_train_steps=3")
    train(studio, tmp_path / "other", *flags, "--max_train_steps=3", change)
    assert weights(tmp_path / "one") != weights(tmp_path / "other")
    first, second = (training_run(tmp_path / name) for name in ("one", "other"))
    assert first["recipe_hash"] != second["recipe_hash"]


def steps_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_recorded_with_the_rate_that_it_used(studio: Studio, tmp_path: Path) -> None:
    train(
        studio,
        tmp_path,
        *("--lr_scheduler=linear", "--lr_warmup_steps=2", "--max_train_steps=6", "--learning_rate=0.01"),
        *("--scale_lr", "--gradient_accumulation_steps=2"),
    )
    rates = [line["lr"] for line in steps_in(tmp_path)]
    assert rates == pytest.approx([0, 0.01, 0.02, 0.015, 0.01, 0.005])


def test_epochs_go_before_steps(studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(studio, tmp_path, "--num_train_epochs=2", "--repeats=3", "--train_batch_size=5", "--cache_latents")
    assert [line["step"] for line in steps_in(tmp_path)] == [1, 2, 3, 4, 5]  # 2 x 3 x 4 images, 5 at a time
    assert "step 5/5" in capsys.readouterr().out
    run = training_run(tmp_path)
    assert run["steps"] == 5
    # As typed, so that a plan can compare it without looking at images.
    assert run["recipe"]["options"]["num_train_epochs"] == 2
    assert run["recipe"]["options"]["max_train_steps"] == 2


def test_the_projects_own_defaults_train(studio: Studio, tmp_path: Path) -> None:
    """Cached latents with bf16, on which the diffusers example ends with an error."""
    adapter = train(studio, tmp_path, "--cache_latents", "--mixed_precision=bf16", "--gradient_checkpointing")
    assert adapter.rank == 4
    assert training_run(tmp_path)["status"] == "complete"


def test_a_fresh_pipeline_is_changed_by_the_adapter(studio: Studio, tmp_path: Path) -> None:
    train(studio, tmp_path, "--learning_rate=0.01", "--max_train_steps=3")
    pipeline = StableDiffusion3Pipeline.from_pretrained(studio.base_model)
    pipeline.set_progress_bar_config(disable=True)

    def sample() -> torch.Tensor:
        images: torch.Tensor = pipeline(
            "a painting in the style of sks",
            height=32,
            width=32,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        return images

    before, again = sample(), sample()
    pipeline.load_lora_weights(tmp_path)
    after = sample()
    assert torch.equal(before, again)
    assert torch.isfinite(after).all()
    assert float((after - before).abs().mean()) > 1e-3


def test_one_stage_is_in_memory_at_a_time(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, weakref.ref[Any]]] = []
    alive_at: dict[str, set[str]] = {}
    for kind in (CLIPTextModelWithProjection, T5EncoderModel, AutoencoderKL, SD3Transformer2DModel):
        original = kind.from_pretrained.__func__

        def from_pretrained(cls: Any, /, *words: Any, original: Any = original, **more: Any) -> Any:
            alive_at[cls.__name__] = {name for name, model in loaded if model() is not None}
            model = original(cls, *words, **more)
            loaded.append((cls.__name__, weakref.ref(model)))
            return model

        monkeypatch.setattr(kind, "from_pretrained", classmethod(from_pretrained))
    gc.collect()
    train(studio, tmp_path, "--cache_latents")
    assert alive_at == {
        "CLIPTextModelWithProjection": set(),
        "T5EncoderModel": set(),
        "AutoencoderKL": set(),
        "SD3Transformer2DModel": set(),
    }
    assert len(loaded) == 5  # and nothing is read a second time in the end


def test_nothing_holds_the_optimizer_when_images_are_decoded(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def make(*words: Any) -> Any:
        optimizer = make_optimizer(*words)
        made.append(weakref.ref(optimizer))
        return optimizer

    def load(*words: Any) -> Any:
        alive.append(any(optimizer() is not None for optimizer in made))
        return load_vae(*words)

    monkeypatch.setattr(trainer, "make_optimizer", make)
    monkeypatch.setattr(validation, "load_vae", load)
    monkeypatch.setattr(validation, "SamplingSettings", partial(SamplingSettings, steps=1))
    train(studio, tmp_path, "--validation_prompt=a boat", "--num_validation_images=1", "--max_train_steps=1")
    assert len(made) == 1
    assert alive == [False]


def test_the_transformer_is_read_in_its_training_precision(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    original = SD3Transformer2DModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *words: Any, **more: Any) -> Any:
        asked.append(more["torch_dtype"])
        return original(cls, *words, **more)

    monkeypatch.setattr(SD3Transformer2DModel, "from_pretrained", classmethod(from_pretrained))
    train(studio, tmp_path, "--mixed_precision=bf16")
    assert asked == [torch.bfloat16]


class TestFailure:
    def assert_nothing_looks_complete(self, studio: Studio, folder: Path) -> None:
        assert sorted(path.name for path in folder.iterdir() if path.name != "set_aside") == [
            "metrics.jsonl",
            "training_run.json",
        ]
        args = make_args(studio, folder)
        images = Setup.prepare(args).data.images
        existing = judge(folder, adapter_spec(args.config, "mimicry"), images, full=True)
        assert existing.state is State.WAITING

    def test_a_diverging_loss_leaves_nothing_that_looks_complete(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        latents = LatentSource.latents
        monkeypatch.setattr(
            LatentSource,
            "latents",
            lambda source, sample: latents(source, sample) * (1 if sample.index < 1 else float("inf")),
        )
        with pytest.raises(TrainingFailed, match="the loss of step 2 is nan: training diverged"):
            train(studio, out)
        self.assert_nothing_looks_complete(studio, out)
        run = training_run(out)
        assert run["status"] == "failed"
        assert run["error"].startswith("the loss of step 2 is nan")
        assert run["steps"] == 1
        assert "weights" not in run

    def test_what_was_complete_before_is_set_aside(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        train(studio, out)
        before = weights(out)
        monkeypatch.setattr(
            AdaptedTransformer,
            "loss",
            lambda model, _: next(iter(model.parameters.values())).sum() * float("nan"),
        )
        with pytest.raises(TrainingFailed, match="the loss of step 1"):
            train(studio, out)
        self.assert_nothing_looks_complete(studio, out)
        (aside,) = (out / "set_aside").iterdir()
        assert aside.name.endswith("-replaced")
        assert weights(aside) == before

    @pytest.mark.parametrize(
        "flag", ["--cache_latents", "--dataloader_num_workers=0", "--dataloader_num_workers=2"]
    )
    def test_an_image_that_cannot_be_read_is_named(self, flag: str, studio: Studio, tmp_path: Path) -> None:
        images = tmp_path / "images"
        images.mkdir()
        whole = next(path for path in sorted(studio.images.iterdir()) if path.suffix == ".png")
        (images / "torn.png").write_bytes(whole.read_bytes()[:2000])
        with pytest.raises(TrainingFailed, match=r"torn\.png cannot be read as an image"):
            train(studio, tmp_path / "out", flag, images=images)
        run = training_run(tmp_path / "out")
        assert (run["status"], run["steps"]) == ("failed", 0)
        assert "torn.png" in run["error"]

    def test_an_error_that_nobody_foresaw_is_recorded_too(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("the roof fell in")

        monkeypatch.setattr(AdaptedTransformer, "loss", fail)
        with pytest.raises(RuntimeError, match="the roof"):
            train(studio, tmp_path / "out")
        assert training_run(tmp_path / "out")["error"] == "RuntimeError: the roof fell in"
        self.assert_nothing_looks_complete(studio, tmp_path / "out")

    def test_too_little_gpu_memory_names_what_helps(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

        monkeypatch.setattr(AdaptedTransformer, "loss", fail)
        with pytest.raises(
            TrainingFailed, match=r"out of GPU memory: .*9 GiB\.; .* type a smaller --resolution"
        ):
            train(studio, tmp_path / "out")
        assert training_run(tmp_path / "out")["status"] == "failed"
