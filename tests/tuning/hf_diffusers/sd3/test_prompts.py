"""Prompt embeddings are those of diffusers' own pipeline, with one encoder in memory at a time."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from mimicry.tuning.base_model import BaseModel
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders
from tests.tuning.hf_diffusers.studio import Studio

PROMPT = "a painting in the style of sks"
CPU = torch.device("cpu")


def encode(
    folder: Path, prompt: str, *, length: int = 77, dtype: torch.dtype = torch.float32
) -> PromptEmbeds:
    return TextEncoders(BaseModel(folder=folder), None, CPU, dtype, warn=print).encode(prompt, length)


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


def test_a_prompt_that_is_cut_is_warned_of(studio: Studio) -> None:
    warnings: list[str] = []
    encoders = TextEncoders(BaseModel(folder=studio.base_model), None, CPU, torch.float32, warnings.append)

    encoders.encode(PROMPT, 77)
    assert warnings == []

    encoders.encode("of a very long description " * 40, 77)
    assert [warning.partition(" reads the first 77 of the prompt's ")[0] for warning in warnings] == [
        "CLIP",
        "CLIP",
        "T5",
    ]
