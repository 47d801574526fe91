"""Prompt embeddings are those of diffusers' own pipeline, with one encoder in memory at a time."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.data import PromptPlan
from mimicry.tuning.hf_diffusers.training.rng import CLASS, Crop, Sample
from tests.tuning.hf_diffusers.studio import Studio

PROMPT = "a painting in the style of sks"
CPU = torch.device("cpu")


def encode(
    folder: Path, prompt: str, *, length: int = 77, dtype: torch.dtype = torch.float32
) -> PromptEmbeds:
    return TextEncoders(BaseModel(folder=folder), None, CPU, dtype, warn=print).encode_all([prompt], length)[
        0
    ]


def encoders_for(folder: Path, warnings: list[str]) -> TextEncoders:
    return TextEncoders(BaseModel(folder=folder), None, CPU, torch.float32, warnings.append)


def reference(folder: Path, prompt: str, length: int, **components: None) -> tuple[torch.Tensor, ...]:
    """Return what the public method of diffusers' pipeline makes of `prompt`."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **components)
    with torch.no_grad():
        sequence, _, pooled, _ = pipeline.encode_prompt(
            prompt,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            device=CPU,
        )
    return sequence, pooled


@pytest.fixture
def without_t5(studio: Studio, tmp_path: Path) -> Path:
    """The base model as people keep it who have no room for T5."""
    folder = tmp_path / "without_t5"
    folder.mkdir()
    for path in studio.base_model.iterdir():
        if path.name not in ("text_encoder_3", "tokenizer_3"):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("length", [77, 16, 200])
@pytest.mark.parametrize(
    "prompt",
    [PROMPT, "sks", "Ein Gemälde, œuvre d'été; {x} 绘画 \U0001f3a8", "a very long description " * 40],
    ids=["the default", "one word", "any letters", "more than any encoder reads"],
)
def test_embeddings_are_those_of_the_pipeline(prompt: str, length: int, studio: Studio) -> None:
    sequence, pooled = reference(studio.base_model, prompt, length)
    ours = encode(studio.base_model, prompt, length=length)
    assert ours.sequence_1LD.shape == (1, 77 + length, sequence.shape[-1])
    torch.testing.assert_close(ours.sequence_1LD, sequence)
    torch.testing.assert_close(ours.pooled_1P, pooled)


def test_other_prompts_have_other_embeddings(studio: Studio) -> None:
    one, other = (encode(studio.base_model, prompt) for prompt in (PROMPT, "a photograph of a cat"))
    assert not torch.allclose(one.sequence_1LD, other.sequence_1LD)
    assert not torch.allclose(one.pooled_1P, other.pooled_1P)


def test_a_model_without_t5_sees_zeros_in_its_place(without_t5: Path) -> None:
    sequence, pooled = reference(without_t5, PROMPT, 77, text_encoder_3=None, tokenizer_3=None)
    ours = encode(without_t5, PROMPT)
    torch.testing.assert_close(ours.sequence_1LD, sequence)
    torch.testing.assert_close(ours.pooled_1P, pooled)
    assert not ours.sequence_1LD[:, 77:].any()


def test_embeddings_come_in_the_asked_precision(studio: Studio) -> None:
    coarse, fine = (
        encode(studio.base_model, PROMPT, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)
    )
    assert coarse.sequence_1LD.dtype == coarse.pooled_1P.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.sequence_1LD.float(), fine.sequence_1LD, atol=0.15, rtol=0.1)


def test_one_encoder_is_alive_at_a_time_and_none_in_the_end(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[weakref.ref[Any]] = []

    def watch(kind: Any) -> None:
        original = kind.from_pretrained.__func__

        def from_pretrained(cls: Any, *words: Any, **more: Any) -> Any:
            assert [encoder() for encoder in encoders if encoder() is not None] == []
            loaded = original(cls, *words, **more)
            encoders.append(weakref.ref(loaded))
            return loaded

        monkeypatch.setattr(kind, "from_pretrained", classmethod(from_pretrained))

    watch(CLIPTextModelWithProjection)
    watch(T5EncoderModel)
    gc.collect()
    gc.disable()  # nobody promises that the collector runs in between
    try:
        encode(studio.base_model, PROMPT)
        alive = [encoder() for encoder in encoders if encoder() is not None]
    finally:
        gc.enable()
    assert len(encoders) == 3
    assert alive == []


def test_many_prompts_are_what_each_is_alone_and_read_each_encoder_once(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PROMPT, "a photograph", "of a very long description " * 40, PROMPT]
    alone = [encode(studio.base_model, prompt) for prompt in prompts]
    read: list[str] = []
    original = TextEncoders.read

    def watched(encoders: TextEncoders, kind: Any, name: str) -> Any:
        read.append(name)
        return original(encoders, kind, name)

    monkeypatch.setattr(TextEncoders, "read", watched)
    together = encoders_for(studio.base_model, []).encode_all(prompts, 77)
    assert read == ["text_encoder", "text_encoder_2", "text_encoder_3"]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.sequence_1LD, other.sequence_1LD)
        assert torch.equal(one.pooled_1P, other.pooled_1P)
        assert one.warnings == other.warnings


def test_of_many_prompts_that_are_cut_the_first_are_named(studio: Studio) -> None:
    warnings: list[str] = []
    long = [f"number {number}, " + "a very long description " * 40 for number in range(5)]
    encoders_for(studio.base_model, warnings).encode_all([PROMPT, *long], 77)
    assert len(warnings) == 3 * 3 + 1
    assert warnings[0].startswith("CLIP reads the first 77 of the prompt's ")
    assert warnings[0].endswith(" tokens: 'number 0, a very long description a very long description a ...'")
    assert warnings[-1] == "2 more prompts are longer than an encoder reads"


class TestPlan:
    def test_each_image_has_its_caption_or_the_instance_prompt(self) -> None:
        plan = PromptPlan.make(PROMPT, ["a tree", None, "a tree"], None)
        assert plan.texts == (PROMPT, "a tree")
        assert [plan.index_of(Sample(9, image, "", Crop())) for image in range(3)] == [1, 0, 1]

    def test_class_samples_have_the_class_prompt(self) -> None:
        plan = PromptPlan.make(PROMPT, ["a tree", None], "a painting")
        assert plan.texts == (PROMPT, "a tree", "a painting")
        assert plan.index_of(Sample(9, 1, "", Crop(), CLASS)) == 2
        assert plan.index_of(Sample(9, 1, "", Crop())) == 0

    def test_the_instance_prompt_comes_first_and_equal_prompts_once(self) -> None:
        assert PromptPlan.make(PROMPT, ["a"], "a").texts == (PROMPT, "a")
        assert PromptPlan.make(PROMPT, [PROMPT], PROMPT).texts == (PROMPT,)


def test_a_prompt_that_is_cut_is_warned_of(studio: Studio) -> None:
    warnings: list[str] = []
    encoders = encoders_for(studio.base_model, warnings)

    encoders.encode_all([PROMPT], 77)[0]
    assert warnings == []

    encoders.encode_all(["of a very long description " * 40], 77)[0]
    assert [warning.partition(" reads the first 77 of the prompt's ")[0] for warning in warnings] == [
        "CLIP",
        "CLIP",
        "T5",
    ]
