"""The files of the tiny model's tokenizers, made from a word list: byte-level BPE for CLIP, unigrams for T5.

Both fall back on letters, so that a word outside the list, such as an artist's name, still has its own ids:
CLIP's falls back on bytes, T5's on the printable characters of Latin-1.
"""

import json
from collections import Counter
from itertools import pairwise

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_T5_PAD, _T5_EOS, _T5_UNKNOWN = "<pad>", "</s>", "<unk>"
_WORD_START = "▁"

_WORD_LIST = """
    sks a an the of in on at by with and no is it style painting artwork picture photo portrait landscape
    hills hill house tree trees boat sun sea water sky field moon night day evening morning light dark
    impressionism cubism baroque brush strokes facets shadow flat polygons short long warm cold blue red
    green yellow gold brown grey white black colour oil canvas man woman dog cat horse flowers city
"""

Pair = tuple[str, str]
Files = dict[str, str]


def clip_files(length: int, pad_token: str = _EOS) -> Files:
    """Return the texts of a CLIPTokenizer's files by name.

    `length` is the number of tokens that prompts are padded or cut to, 77 in the real ones.
    `pad_token` is the end-of-text token in SD3's first CLIP tokenizer and "!" in its second.
    """
    merges = _learn_merges(_WORD_LIST.split())
    symbols = list(_byte_symbols().values())
    tokens = [*symbols, *(symbol + _END_OF_WORD for symbol in symbols)]
    tokens += [left + right for left, right in merges] + [_BOS, _EOS]
    special = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": pad_token}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        **special,
    }
    return {
        "vocab.json": _json({token: index for index, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "special_tokens_map.json": _json(special),
        "tokenizer_config.json": _json(config),
    }


def t5_files() -> Files:
    """Return the texts of a T5TokenizerFast's files by name."""
    characters = [chr(code) for code in [*range(0x21, 0x7F), *range(0xA1, 0x100)]]
    # Log probabilities: a whole word is more likely than its letters, and a letter more than an unknown.
    pieces = [(_T5_PAD, 0.0), (_T5_EOS, 0.0), (_T5_UNKNOWN, 0.0), (_WORD_START, -8.0)]
    pieces += [(character, -8.0) for character in characters]
    pieces += [(_WORD_START + word, -4.0) for word in _WORD_LIST.split()]
    special = {"eos_token": _T5_EOS, "unk_token": _T5_UNKNOWN, "pad_token": _T5_PAD}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **special}
    return {
        "tokenizer.json": _json(_t5_backend(pieces)),
        "special_tokens_map.json": _json(special),
        "tokenizer_config.json": _json({**config, "additional_special_tokens": []}),
    }


def _t5_backend(pieces: list[tuple[str, float]]) -> dict[str, object]:
    """Return the description of the tokenizer that the tokenizers library reads."""
    metaspace = {"type": "Metaspace", "replacement": _WORD_START, "prepend_scheme": "always", "split": True}
    eos_id = [piece for piece, _ in pieces].index(_T5_EOS)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"SpecialToken": {"id": _T5_EOS, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": piece, **flags} for index, (piece, _) in enumerate(pieces[:3])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {_T5_EOS: {"id": _T5_EOS, "ids": [eos_id], "tokens": [_T5_EOS]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }


def _learn_merges(words: list[str]) -> list[Pair]:
    """Return the byte pair merges, in order, that make one token of every word.

    The most frequent pair comes first; among equally frequent ones, the first in alphabetical order.
    """
    spelt = [[*word[:-1], word[-1] + _END_OF_WORD] for word in words]
    merges: list[Pair] = []
    while pairs := Counter(pair for symbols in spelt for pair in pairwise(symbols)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelt = [_merged(symbols, merges[-1]) for symbols in spelt]
    return merges


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for symbol in symbols:
        # A merged symbol cannot be the left part again: it is longer than the left part.
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def _byte_symbols() -> dict[int, str]:
    """Return the letter for each byte: the character itself if it is printable, else one above Latin-1."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    return symbols | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
