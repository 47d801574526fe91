"""Prompt embeddings on disk: from the second artist of a study on, no text encoder is read.

    {folder}/{key}.safetensors

A key is a hash of all that the embeddings depend on. Any number of processes may share a folder: files come
and go whole, and two that compute the same embeddings replace one file by an equal one.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load, save
from torch import Tensor

from mimicry.common.environment import cache_folder
from mimicry.common.files import canonical_json, sha256_text, write_bytes
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders, warn_of_cut_prompts
from mimicry.tuning.hf_diffusers.training.console import say

TEXT_COMPONENTS = (
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
)
# Increase it whenever our code gives the same prompt other embeddings.
_SCHEMA = 1
_METADATA = "mimicry"


@dataclass(frozen=True)
class CachedEncoders:
    """Text encoders that are not read when `folder` holds their embeddings.

    A folder that cannot be written costs time, but does not end a training.
    """

    encoders: TextEncoders
    folder: Path

    @classmethod
    def of(cls, encoders: TextEncoders, folder: str | None) -> "CachedEncoders":
        """Return `encoders` with the cache in `folder`; None is the folder of this user."""
        return cls(encoders, default_folder() if folder is None else Path(os.path.expanduser(folder)))  # noqa: PTH111 - accepts an unknown user's home

    def encode(self, prompt: str, max_sequence_length: int) -> PromptEmbeds:
        """Return the embeddings of one prompt; see `encode_all`."""
        return self.encode_all([prompt], max_sequence_length)[0]

    def encode_all(self, prompts: Sequence[str], max_sequence_length: int) -> list[PromptEmbeds]:
        """Return the embeddings of `prompts`, on the CPU; see `TextEncoders.encode_all`.

        Encoders are read only for those prompts that are not in the folder.
        """
        facts = self._facts(max_sequence_length)
        keys = [_Key.of(facts | {"prompt": prompt}) for prompt in prompts]
        found = {key.name: self._read(key) for key in keys}
        known = [entry for entry in found.values() if entry is not None]
        if known:
            say(f"prompt embeddings from the cache, {_size(known)}")
        missing = [key for key in dict.fromkeys(keys) if found[key.name] is None]
        if missing:
            texts = [key.facts["prompt"] for key in missing]
            say(f"encoding the prompt {texts[0]!r}" if len(texts) == 1 else f"encoding {len(texts)} prompts")
            made = replace(self.encoders, warn=_leave).encode_all(texts, max_sequence_length)
            found |= {key.name: embeds for key, embeds in zip(missing, made, strict=True)}
            self._write(missing, made)
        embeds = [entry for key in keys if (entry := found[key.name]) is not None]
        warn_of_cut_prompts(prompts, embeds, self.encoders.warn)
        return embeds

    def _facts(self, max_sequence_length: int) -> dict[str, Any]:
        """Return all that embeddings depend on, to their last bits, beside the prompt."""
        encoders = self.encoders
        model, cuda = encoders.model, encoders.device.type == "cuda"
        has_t5 = (model.folder / "text_encoder_3").is_dir()
        return {
            "schema": _SCHEMA,
            "model": model.identity(TEXT_COMPONENTS),
            "variant": encoders.variant,
            "max_sequence_length": max_sequence_length,
            "precision": str(encoders.dtype),
            # Without T5 there are zeros, as wide as the transformer expects.
            "width_without_t5": None if has_t5 else model.config_of("transformer")["joint_attention_dim"],
            "device": torch.cuda.get_device_name(encoders.device) if cuda else encoders.device.type,
            "threads": None if cuda else torch.get_num_threads(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def _read(self, key: "_Key") -> PromptEmbeds | None:
        """Return the cached embeddings; None when they are missing or damaged."""
        try:
            content = (self.folder / key.name).read_bytes()
        except OSError:
            return None
        try:
            return _parsed(content, key.facts)
        # Reading a damaged file may raise any error.
        except Exception as error:
            say(f"cached prompt embeddings are broken and made again: {error}")
            return None

    def _write(self, keys: Sequence["_Key"], made: Sequence[PromptEmbeds]) -> None:
        try:
            for key, embeds in zip(keys, made, strict=True):
                write_bytes(self.folder / key.name, _content(key.facts, embeds))
        except OSError as error:
            # The warning goes where no path of this machine belongs.
            say(f"prompt cache: {error}")
            self.encoders.warn(
                f"prompt embeddings are not cached: the folder cannot be written ({error.strerror}); "
                f"name another with --prompt-cache-dir"
            )
            return
        say(f"prompt embeddings cached, {_size(made)}")


@dataclass(frozen=True)
class _Key:
    """What embeddings depend on, and the name of their file that follows from it."""

    facts: dict[str, Any] = field(hash=False, compare=False)
    name: str

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "_Key":
        return cls(facts, f"{sha256_text(canonical_json(facts))}.safetensors")


def default_folder() -> Path:
    """Return the user's folder for prompt embeddings."""
    return cache_folder("prompts")


def _content(facts: dict[str, Any], embeds: PromptEmbeds) -> bytes:
    tensors = {"sequence": embeds.sequence_1LD.contiguous(), "pooled": embeds.pooled_1P.contiguous()}
    # One entry, since the order of several is by chance and equal embeddings make equal files.
    kept = {"facts": facts, "warnings": list(embeds.warnings), "sha256": _digest(tensors)}
    content: bytes = save(tensors, {_METADATA: json.dumps(kept, sort_keys=True)})
    return content


def _parsed(content: bytes, facts: dict[str, Any]) -> PromptEmbeds:
    """Return what `_content` was made of.

    Raises:
        Exception: the content is damaged, or of other facts.
    """
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    kept = json.loads(header["__metadata__"][_METADATA])
    if kept["facts"] != facts:
        raise ValueError("made of something else")
    if kept["sha256"] != _digest(tensors):
        raise ValueError("its sum differs")
    return PromptEmbeds(tensors["sequence"], tensors["pooled"], tuple(map(str, kept["warnings"])))


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(json.dumps([name, str(tensors[name].dtype), list(tensors[name].shape)]).encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _size(embeds: Sequence[PromptEmbeds]) -> str:
    count = sum(one.sequence_1LD.nbytes + one.pooled_1P.nbytes for one in embeds)
    size = f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"
    return size if len(embeds) == 1 else f"{len(embeds)} prompts, {size}"


def _leave(warning: str) -> None:
    """Ignore a warning: the caller warns of all prompts together."""
