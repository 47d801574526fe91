"""Class images are functions of settings and index, made once, by one process, kill it when you will."""

import functools
import gc
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from filelock import FileLock

from mimicry.common.errors import TrainingFailed, UsageError
from mimicry.study.drawn_images import SETTINGS
from mimicry.tuning.hf_diffusers.sd3 import class_sampling, sampling
from mimicry.tuning.hf_diffusers.sd3.class_sampling import make_class_images
from mimicry.tuning.hf_diffusers.sd3.modulation import CachedModulationTransformer
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.training.device import training_dtype
from tests.tuning.hf_diffusers.sd3.many_prompts import class_flags
from tests.tuning.hf_diffusers.sd3.parts import make_args, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

COUNT = 3
QUICK_SETTINGS = functools.partial(sampling.SamplingSettings, steps=2)
QUICK = ("--resolution=16", "--sample_batch_size=2")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample in two steps: what is tested here does not depend on how many there are."""
    monkeypatch.setattr(class_sampling, "SamplingSettings", QUICK_SETTINGS)


def prepare(studio: Studio, folder: Path, *flags: str, count: int = COUNT) -> Setup:
    return Setup.prepare(make_args(studio, folder / "out", *class_flags(folder, count), *QUICK, *flags))


def encoders(setup: Setup) -> TextEncoders:
    return TextEncoders(
        setup.model, None, setup.runtime.device, training_dtype(setup.args.config), warn=print
    )


def generate(setup: Setup, prompt: PromptEmbeds, negative: PromptEmbeds) -> None:
    assert setup.data.class_images is not None
    make_class_images(setup.data.class_images, setup.model, setup.runtime, prompt, negative)


def make(studio: Studio, folder: Path, *flags: str, count: int = COUNT) -> dict[str, str]:
    """Generate what is missing in `folder`; return the sha256 of every image there."""
    setup = prepare(studio, folder, *flags, count=count)
    generate(setup, *encoders(setup).encode_all(["a painting", sampling.NEGATIVE_PROMPT], 77))
    return images_in(folder)


def images_in(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def expected(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_sampling, "SamplingSettings", QUICK_SETTINGS)
        return make(studio, tmp_path_factory.mktemp("expected"), count=5)


def test_image_k_is_the_same_whatever_else_is_made(
    expected: dict[str, str], studio: Studio, tmp_path: Path
) -> None:
    assert len(set(expected.values())) == 5
    first = make(studio, tmp_path)
    assert first == {name: expected[name] for name in sorted(expected)[:3]}
    (tmp_path / "class-00001.png").unlink()
    assert make(studio, tmp_path, count=5) == expected
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".class_images.lock"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--seed=43", "--mixed_precision=bf16", "--prior_generation_precision=bf16"])
def test_the_settings_make_the_image(
    flag: str, expected: dict[str, str], studio: Studio, tmp_path: Path
) -> None:
    made = make(studio, tmp_path, flag, count=1)
    assert made.keys() == {"class-00000.png"}
    assert made["class-00000.png"] != expected["class-00000.png"]


def test_a_conditioning_table_changes_no_bit(
    expected: dict[str, str], studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[type] = []
    sample = sampling.sample_latents

    def watched(transformer: Any, *words: Any) -> Any:
        kinds.append(type(transformer))
        assert not transformer.training
        assert not [name for name, _ in transformer.named_parameters() if "lora" in name]
        return sample(transformer, *words)

    monkeypatch.setattr(class_sampling, "sample_latents", watched)
    assert make(studio, tmp_path, "--conditioning_table", count=5) == expected
    assert set(kinds) == {CachedModulationTransformer}
    kinds.clear()
    make(studio, tmp_path / "plain", count=1)
    assert kinds == [SD3Transformer2DModel]


class TestInterruption:
    def stop_at(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
        original, calls = getattr(class_sampling, name), []

        def stop(*words: Any, **more: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise KeyboardInterrupt
            return original(*words, **more)

        monkeypatch.setattr(class_sampling, name, stop)

    @pytest.mark.parametrize(
        ("name", "images", "sampled"),
        [("sample_latents", 0, 2), ("decode", 1, 4)],
        ids=["in the second batch", "at the second image"],
    )
    def test_what_was_made_is_not_made_again(
        self,
        name: str,
        images: int,
        sampled: int,
        expected: dict[str, str],
        studio: Studio,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as patch:
            self.stop_at(patch, name, 2)
            with pytest.raises(KeyboardInterrupt):
                make(studio, tmp_path, count=5)
        assert len(images_in(tmp_path)) == images
        assert (tmp_path / SETTINGS).exists()
        with monkeypatch.context() as patch:
            batches: list[int] = []
            sample = sampling.sample_latents

            def counted(*words: Any) -> Any:
                batches.append(len(words[4]))
                return sample(*words)

            patch.setattr(class_sampling, "sample_latents", counted)
            assert make(studio, tmp_path, count=5) == expected
        # Three batches of two in all; one was whole before the first stop, all before the second.
        assert batches == [2] * (2 if name == "sample_latents" else 0)
        assert list(tmp_path.glob(".latents*")) == []

    def test_other_settings_do_not_take_its_latents_up(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            self.stop_at(patch, "decode", 1)
            with pytest.raises(KeyboardInterrupt):
                make(studio, tmp_path, count=1)
        with pytest.raises(UsageError, match="seed 42 -> 43"):
            make(studio, tmp_path, "--seed=43", count=1)
        (tmp_path / SETTINGS).unlink()
        made = make(studio, tmp_path, "--seed=43", count=1)
        assert made == make(studio, tmp_path / "other", "--seed=43", count=1)


def test_two_processes_make_each_image_once(
    expected: dict[str, str],
    studio: Studio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other one holds the lock, and has made all images by the time that we get it."""
    monkeypatch.setattr(class_sampling, "REMIND_SECONDS", 0.05)
    other = tmp_path / "other"
    make(studio, other)
    mine = tmp_path / "mine"
    mine.mkdir()
    lock = FileLock(mine / ".class_images.lock", thread_local=False)
    lock.acquire()

    def work() -> None:
        time.sleep(0.5)
        for path in other.glob("class*"):
            path.rename(mine / path.name)
        lock.release()

    worker = threading.Thread(target=work)
    # The setup comes first: at its time the images are missing.
    setup = prepare(studio, mine)
    embeds = encoders(setup).encode_all(["x"], 77)[0]
    monkeypatch.setattr(class_sampling, "read_transformer", None)
    worker.start()
    generate(setup, embeds, embeds)
    worker.join()
    assert images_in(mine).keys() == set(sorted(expected)[:3])
    assert "waiting for another process" in capsys.readouterr().out


def test_settings_that_came_meanwhile_are_refused(studio: Studio, tmp_path: Path) -> None:
    setup = prepare(studio, tmp_path)
    embeds = encoders(setup).encode_all(["x"], 77)[0]
    (tmp_path / SETTINGS).write_text('{"prompt": "something else"}')
    with pytest.raises(TrainingFailed, match="prompt 'something else' -> 'a painting'"):
        generate(setup, embeds, embeds)


def test_a_folder_that_cannot_be_made_is_named(studio: Studio, tmp_path: Path) -> None:
    setup = prepare(studio, tmp_path / "file" / "class")
    embeds = encoders(setup).encode_all(["x"], 77)[0]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TrainingFailed, match=r"--class_data_dir: images cannot be generated in .*file/class"):
        generate(setup, embeds, embeds)


def test_transformer_and_vae_are_not_in_memory_together(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[list[str]] = []
    load = AutoencoderKL.from_pretrained.__func__

    def watched(cls: Any, *words: Any, **more: Any) -> Any:
        kinds = (SD3Transformer2DModel, AutoencoderKL)
        alive.append([type(item).__name__ for item in gc.get_objects() if issubclass(type(item), kinds)])
        return load(cls, *words, **more)

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", classmethod(watched))
    gc.collect()
    make(studio, tmp_path, count=1)
    assert alive == [[]]


def test_a_training_makes_them_and_the_next_one_takes_them(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*class_flags(tmp_path / "class", COUNT), *QUICK, "--max_train_steps=1")
    train(studio, tmp_path / "first", *flags)
    assert "generating 3 of 3 class images" in capsys.readouterr().out
    images = images_in(tmp_path / "class")
    train(studio, tmp_path / "second", *flags)
    said = capsys.readouterr().out
    assert "generating" not in said
    assert "encoding" not in said.replace("encoding images", "")
    assert images_in(tmp_path / "class") == images
    first, second = (training_run(tmp_path / name) for name in ("first", "second"))
    for key in ("class_images", "recipe_hash", "draws_sha256", "final_loss"):
        assert first[key] == second[key], key
    assert first["paths"]["class_data_dir"] == str(tmp_path / "class")
    assert first["options"]["class_data_dir"] is None
    assert (tmp_path / "first" / "pytorch_lora_weights.safetensors").read_bytes() == (
        tmp_path / "second" / "pytorch_lora_weights.safetensors"
    ).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_fp16_without_a_gpu_names_what_works(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--prior-generation-precision bf16 or no"):
        prepare(studio, tmp_path, "--prior_generation_precision=fp16")
