"""`mimicry samples` on the tiny model: the right pictures, once, whatever an adapter is like."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from mimicry.common.claims import Claim
from mimicry.common.files import read_json, write_json
from mimicry.common.processes import run_command
from mimicry.sampling import sampler
from mimicry.sampling.draw_samples import draw_samples
from mimicry.sampling.sampler import Sampler
from mimicry.study.drawn_images import read_settings
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters import ADAPTER_CONFIG
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.hf_diffusers.sd3.prompts import TextEncoders
from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings, initial_noise, latent_shape
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig
from tests.sampling.adapters import write_adapter
from tests.small_study import ANNA, MIST, ORIGINAL, output_dir
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.studio import Studio
from tests.tuning.lora_files import save_lora

PROMPTS = ("a boat", "a tree")
SETTINGS = SamplingSettings(resolution=32, steps=3)


@pytest.fixture(scope="module")
def study(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Studio, StudyTree]:
    """One artist with two adapters that draw differently. Tests must not change it."""
    folder = tmp_path_factory.mktemp("study")
    tree = StudyTree(folder / "study")
    artist = tree.images_of(tree.original_art, ANNA)
    source = demo_dir / "style_mimicry/original_art/historical/baroque/Casimir_Drovanti"
    artist.mkdir(parents=True)
    for path in sorted(source.iterdir())[:3]:
        shutil.copyfile(path, artist / path.name)
    studio = Studio(base_model=demo_dir / "tiny_sd3", images=artist, mist=artist)
    for condition, flags in ((ORIGINAL, ("--rank=4",)), (MIST, ("--rank=2", "--seed=7", "--lora_blocks=0"))):
        train(studio, output_dir(tree, condition, ANNA), "--learning_rate=0.1", "--cache_latents", *flags)
    # accelerate keeps the first precision of a process, and other tests choose their own.
    AcceleratorState._reset_state(reset_partial_state=True)
    return studio, tree


@pytest.fixture
def own(study: tuple[Studio, StudyTree], tmp_path: Path) -> StudyTree:
    """A copy of the study, to draw in."""
    shutil.copytree(study[1].data_root, tmp_path / "own")
    return StudyTree(tmp_path / "own")


def words(study: tuple[Studio, StudyTree], tree: StudyTree, *more: str) -> list[str]:
    return [
        f"--data-root={tree.data_root}",
        f"--pretrained-model-name-or-path={study[0].base_model}",
        *("--resolution=32", "--steps=3", "--mixed-precision=no"),
        *(f"--prompt={prompt}" for prompt in PROMPTS),
        *more,
    ]


def drawn(tree: StudyTree) -> dict[str, bytes]:
    root = tree.data_root / "mimic_art" / "hf_diffusers"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_samples_are_those_of_a_fresh_pipeline(
    study: tuple[Studio, StudyTree], own: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = own.data_root / "sheets" / "sheet.png"
    assert run_command(draw_samples, words(study, own, "--seed=5", f"--contact-sheet={sheet}")) == 0

    files = drawn(own)
    names = [
        f"{place}/{name}_5.png"
        for place in ("base", f"mist__none/{ANNA}", f"none__none/{ANNA}")
        for name in ("a_boat", "a_tree")
    ]
    assert list(files) == names
    assert len(set(files.values())) == 6
    assert capsys.readouterr().out.splitlines()[-1] == str(sheet)
    model = BaseModel(folder=study[0].base_model)
    encoders = TextEncoders(model, None, torch.device("cpu"), torch.float32, warn=print)
    prompt, negative = encoders.encode_all(["a tree", ""], 77)
    for condition in (None, ORIGINAL, MIST):
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            model.folder, text_encoder=None, text_encoder_2=None, text_encoder_3=None
        )
        pipeline.set_progress_bar_config(disable=True)
        if condition is not None:
            pipeline.load_lora_weights(output_dir(own, condition, ANNA))
            pipeline.transformer.to(torch.float32)
        theirs = pipeline(
            prompt_embeds=prompt.sequence_1LD,
            pooled_prompt_embeds=prompt.pooled_1P,
            negative_prompt_embeds=negative.sequence_1LD,
            negative_pooled_prompt_embeds=negative.pooled_1P,
            latents=initial_noise(5, "sample_noise", 0, "", latent_shape(model, 32)),
            guidance_scale=4.5,
            num_inference_steps=3,
            height=32,
            width=32,
        ).images[0]
        folder = (own.data_root / "mimic_art" / "hf_diffusers") / (
            "base" if condition is None else f"{condition}/{ANNA}"
        )
        with Image.open(folder / "a_tree_5.png") as ours:
            assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
        settings = read_settings(folder / "a_tree_5.png")
        assert settings is not None
        assert (settings["prompt"], settings["seed"], settings["steps"]) == ("a tree", 5, 3)
        assert (settings["adapter"] is None) == (condition is None)
        assert str(own.data_root) not in str(settings)


def test_taking_turns_leaves_no_trace(study: tuple[Studio, StudyTree]) -> None:
    studio, tree = study
    folders = [None, *(output_dir(tree, condition, ANNA) for condition in (ORIGINAL, MIST))]
    model, config = BaseModel(folder=studio.base_model), TuningConfig(mixed_precision="no")

    def image(one: Sampler, folder: Path | None) -> bytes:
        with one.base.adapter(folder):
            return one.image("a boat", 0).tobytes()

    fresh = [image(Sampler.load(model, config, SETTINGS, ["a boat"]), folder) for folder in folders]
    one = Sampler.load(model, config, SETTINGS, ["a boat"])
    layers = [name for name, _ in one.base.transformer.named_modules()]

    for order in ((0, 1, 2), (2, 1, 0), (1, 1, 2)):
        assert [image(one, folders[which]) for which in order] == [fresh[which] for which in order]
    assert len(set(fresh)) == 3
    assert [name for name, _ in one.base.transformer.named_modules()] == layers


def test_what_is_there_is_not_drawn_again(
    study: tuple[Studio, StudyTree],
    own: StudyTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(draw_samples, words(study, own, "--dry-run")) == 0
    assert not (own.data_root / "mimic_art" / "hf_diffusers").exists()
    assert run_command(draw_samples, words(study, own)) == 0
    first = drawn(own)
    assert len(first) == 4
    missing = (own.data_root / "mimic_art" / "hf_diffusers") / f"mist__none/{ANNA}/a_boat_0.png"
    missing.unlink()
    # All prompts are cached by now.
    monkeypatch.setattr(TextEncoders, "encode_all", None)
    assert run_command(draw_samples, words(study, own)) == 0
    assert drawn(own) == first

    capsys.readouterr()
    assert run_command(draw_samples, words(study, own, "--guidance=2")) == 0
    assert "type --overwrite" in capsys.readouterr().out
    assert drawn(own) == first
    assert run_command(draw_samples, words(study, own, "--guidance=2", "--overwrite")) == 0
    assert not set(drawn(own).values()) & set(first.values())


def test_two_calls_share_the_work(
    study: tuple[Studio, StudyTree],
    own: StudyTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another call has claimed the first adapter, has drawn a picture of it, and leaves the rest to us."""
    run_command(draw_samples, words(study, own))
    alone = drawn(own)
    theirs, left = sorted(
        path for path in sorted((own.data_root / "mimic_art").rglob("*.png")) if "none__none" in str(path)
    )
    left.unlink()
    for path in sorted((own.data_root / "mimic_art").rglob("*.png")):
        if path != theirs:
            path.unlink(missing_ok=True)
    before = theirs.stat().st_mtime_ns
    claim = Claim.take_anew(theirs.parent)
    waits: list[float] = []

    def release(seconds: float) -> None:
        # By now everything that nobody has claimed is drawn.
        assert {name for name in drawn(own) if "mist__none" in name} == {
            name for name in alone if "mist__none" in name
        }
        waits.append(seconds)
        claim.release()

    monkeypatch.setattr(time, "sleep", release)
    assert run_command(draw_samples, words(study, own)) == 0
    assert len(waits) == 1
    assert "waiting, in use by pid" in capsys.readouterr().out
    assert drawn(own) == alone
    assert theirs.stat().st_mtime_ns == before


def test_adapters_are_drawn_as_they_were_trained(
    study: tuple[Studio, StudyTree], own: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with the model, resolution and precision of its record, in one call."""
    record = output_dir(own, MIST, ANNA) / TRAINING_RUN
    content = read_json(record)
    content["options"]["resolution"] = 64
    write_json(record, content)
    resolution = read_json(output_dir(own, ORIGINAL, ANNA) / TRAINING_RUN)["options"]["resolution"]
    command = [f"--data-root={own.data_root}", "--steps=1", "--prompt=a boat"]

    assert run_command(draw_samples, command) == 0

    for condition, size in ((ORIGINAL, resolution), (MIST, 64)):
        path = own.data_root / "mimic_art" / "hf_diffusers" / f"{condition}/{ANNA}/a_boat_0.png"
        with Image.open(path) as picture:
            assert picture.size == (size, size)
    assert resolution == 32

    content["paths"]["base_model"] = "./moved"
    write_json(record, content)
    assert run_command(draw_samples, command) == 2
    assert "--pretrained-model-name-or-path ./moved: no such folder here" in capsys.readouterr().err
    typed = f"--pretrained-model-name-or-path={study[0].base_model}"
    assert run_command(draw_samples, [*command, typed]) == 0


def test_a_broken_adapter_stops_nobody_else(
    study: tuple[Studio, StudyTree], own: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = output_dir(own, MIST, ANNA) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])

    assert run_command(draw_samples, words(study, own)) == 1

    assert list(drawn(own)) == [f"none__none/{ANNA}/a_{what}_0.png" for what in ("boat", "tree")]
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: mist__none/{ANNA}: {weights}")


def test_an_adapter_of_another_model_stops_nobody_else(
    study: tuple[Studio, StudyTree], own: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = output_dir(own, ORIGINAL, ANNA)
    (folder / TRAINING_RUN).unlink()  # as of another tool, so that only loading can tell
    save_lora(folder / WEIGHTS)

    assert run_command(draw_samples, words(study, own)) == 1

    assert list(drawn(own)) == [f"mist__none/{ANNA}/a_{what}_0.png" for what in ("boat", "tree")]
    assert f"{folder} does not go with the base model" in capsys.readouterr().err


def test_an_adapter_that_trains_what_the_table_replaces_is_drawn_too(
    study: tuple[Studio, StudyTree],
    own: StudyTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the whole transformer, and after all adapters that can do without."""
    assert run_command(draw_samples, words(study, own, "--base")) == 0
    usual = drawn(own)
    shutil.rmtree(own.data_root / "mimic_art")
    model, folder = BaseModel(folder=study[0].base_model), output_dir(own, MIST, ANNA)
    for name in (TRAINING_RUN, ADAPTER_CONFIG):
        (folder / name).unlink()  # they are about other weights
    write_adapter(folder, model, ("norm1.linear", "norm_out.linear", "attn.to_q"), seed=1)
    read: list[tuple[str, ...]] = []
    load = Sampler.load

    def watched(*args: Any) -> Sampler:
        sampler = load(*args)
        read.append((type(sampler.base.transformer).__name__, *sampler.prompts))
        return sampler

    monkeypatch.setattr(Sampler, "load", watched)
    capsys.readouterr()

    assert run_command(draw_samples, words(study, own, "--base")) == 0

    assert read == [
        ("CachedModulationTransformer", *PROMPTS, ""),
        ("SD3Transformer2DModel", *PROMPTS, ""),
    ]
    said = capsys.readouterr().out
    assert said.count("no conditioning table: the adapter trains transformer_blocks.0.norm1.linear, ") == 1
    found = drawn(own)
    assert list(found) == list(usual)
    assert all((found[name] != usual[name]) is name.startswith("mist") for name in usual)
    one = Sampler.load(model, TuningConfig(mixed_precision="no", conditioning_table=False), SETTINGS, PROMPTS)
    with one.base.adapter(folder):
        expected = one.image("a boat", 0)
    with Image.open(own.data_root / "mimic_art" / "hf_diffusers" / f"mist__none/{ANNA}/a_boat_0.png") as ours:
        assert ours.tobytes() == expected.tobytes()


def test_numbers_that_are_not_finite_make_no_picture(
    study: tuple[Studio, StudyTree],
    own: StudyTree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sampler, "sample_latents", lambda *_: torch.full((1, 16, 8, 8), torch.inf))

    assert run_command(draw_samples, words(study, own)) == 1

    assert drawn(own) == {}
    assert capsys.readouterr().err.count("not finite") == 2


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--resolution=36"], 2, "type --resolution "),
        (["--mixed-precision=fp16"], 2, "needs a GPU"),
        (["--pretrained-model-name-or-path=./nowhere"], 2, "nowhere"),
        (["--rank=4"], 2, "No such option"),
    ],
)
def test_bad_input_is_refused(
    more: list[str],
    code: int,
    message: str,
    study: tuple[Studio, StudyTree],
    own: StudyTree,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available() and "fp16" in more[0]:
        pytest.skip("this machine has a GPU")
    assert run_command(draw_samples, words(study, own, *more)) == code
    assert message in capsys.readouterr().err
    assert not (own.data_root / "mimic_art" / "hf_diffusers").exists()
