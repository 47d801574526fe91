"""The tokenizers made by code work in the libraries that read the real ones."""

from pathlib import Path
from typing import Any

import pytest

PROMPT = "a painting in the style of sks"


@pytest.fixture(scope="module", params=["tokenizer", "tokenizer_2"])
def clip(request: pytest.FixtureRequest, demo_dir: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(demo_dir / "tiny_sd3" / request.param)


@pytest.fixture(scope="module")
def t5(demo_dir: Path) -> Any:
    from transformers import T5TokenizerFast

    return T5TokenizerFast.from_pretrained(demo_dir / "tiny_sd3" / "tokenizer_3")


def test_clip_has_a_token_for_each_word_of_the_prompt(clip: Any) -> None:
    ids = clip(PROMPT).input_ids

    assert ids[0] == clip.bos_token_id
    assert ids[-1] == clip.eos_token_id
    assert len(set(ids)) == len(PROMPT.split()) + 2
    assert clip.decode(ids, skip_special_tokens=True) == PROMPT


def test_clip_spells_what_it_does_not_know(clip: Any) -> None:
    ids = clip("zoé qwxz 日本").input_ids[1:-1]

    assert clip.unk_token_id not in ids
    assert clip.decode(ids) == "zoé qwxz 日本"


def test_clip_pads_to_77(clip: Any) -> None:
    ids = clip("sks", padding="max_length").input_ids

    assert len(ids) == clip.model_max_length == 77
    assert set(ids[3:]) == {clip.pad_token_id}


def test_the_two_clip_tokenizers_pad_differently(demo_dir: Path) -> None:
    from transformers import CLIPTokenizer

    first, second = (
        CLIPTokenizer.from_pretrained(demo_dir / "tiny_sd3" / name) for name in ("tokenizer", "tokenizer_2")
    )

    assert first.pad_token_id == first.eos_token_id
    assert second.pad_token_id == second.convert_tokens_to_ids("!") == 0


def test_t5_has_a_token_for_each_word_and_spells_the_rest(t5: Any) -> None:
    assert len(t5(PROMPT).input_ids) == len(PROMPT.split()) + 1
    for text in (PROMPT, "Zoé O'Hara, qwxz!"):
        ids = t5(text).input_ids
        assert ids[-1] == t5.eos_token_id == 1
        assert t5.unk_token_id not in ids
        assert t5.decode(ids, skip_special_tokens=True) == text


def test_t5_has_no_ids_beyond_the_vocabulary(t5: Any) -> None:
    assert len(t5) == t5.vocab_size


@pytest.mark.parametrize("word", ["dog", "sks", "qwxz", "style"])
def test_words_have_different_ids(clip: Any, t5: Any, word: str) -> None:
    for tokenizer in (clip, t5):
        assert tokenizer(word).input_ids != tokenizer("cat").input_ids
