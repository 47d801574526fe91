"""Prompt embeddings: each text encoder in turn is read, used and freed; one at a time is in memory."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load, save
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from mimicry.common.environment import cache_folder
from mimicry.common.files import canonical_json, sha256_text, write_bytes
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.distributed import say

# Warnings name this many of the prompts that are cut; the rest are counted.
_NAMED_PROMPTS = 3
_SHOWN_LETTERS = 60

TEXT_COMPONENTS = (
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
)
# Increase it whenever our code gives the same prompt other embeddings.
_SCHEMA = 1
_METADATA = "mimicry"


@dataclass(frozen=True)
class PromptEmbeds:
    """The embeddings of one prompt, as the transformer takes them.

    `sequence_1LD` holds the tokens of both CLIPs, side by side and padded to T5's width, then those of T5;
    `pooled_1P` the pooled outputs of both CLIPs, side by side. `warnings` says which encoder did not read
    all of the prompt.
    """

    sequence_1LD: Tensor
    pooled_1P: Tensor
    warnings: tuple[str, ...] = ()

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptEmbeds":
        return PromptEmbeds(
            self.sequence_1LD.to(device, dtype), self.pooled_1P.to(device, dtype), self.warnings
        )


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a base model, each read when needed; `warn` is told of prompts that are cut."""

    model: BaseModel
    variant: str | None
    device: torch.device
    dtype: torch.dtype
    warn: Callable[[str], None]

    @torch.no_grad()
    def encode_all(self, prompts: Sequence[str], max_sequence_length: int) -> list[PromptEmbeds]:
        """Return the embeddings of `prompts`, on the CPU, each encoded by itself; each encoder is read once.

        `max_sequence_length` are the tokens that T5 reads; CLIP always reads as many as it was made for.
        """
        cut: list[list[str]] = [[] for _ in prompts]
        first = self._clip("text_encoder", "tokenizer", prompts, cut)
        second = self._clip("text_encoder_2", "tokenizer_2", prompts, cut)
        t5 = self._t5(prompts, max_sequence_length, cut)
        embeds = []
        for (first_1LD, first_1P), (second_1LD, second_1P), t5_1LD, warnings in zip(
            first, second, t5, cut, strict=True
        ):
            clip_1LD = torch.cat([first_1LD, second_1LD], dim=-1)
            clip_1LD = F.pad(clip_1LD, (0, t5_1LD.shape[-1] - clip_1LD.shape[-1]))
            embeds.append(
                PromptEmbeds(
                    sequence_1LD=torch.cat([clip_1LD, t5_1LD], dim=1),
                    pooled_1P=torch.cat([first_1P, second_1P], dim=-1),
                    warnings=tuple(warnings),
                )
            )
        warn_of_cut_prompts(prompts, embeds, self.warn)
        return embeds

    def _clip(
        self, encoder_name: str, tokenizer_name: str, prompts: Sequence[str], cut: list[list[str]]
    ) -> list[tuple[Tensor, Tensor]]:
        tokenizer = AutoTokenizer.from_pretrained(self.model.folder / tokenizer_name)
        length = tokenizer.model_max_length
        ids = [self._token_ids(tokenizer, *pair, length, "CLIP") for pair in zip(prompts, cut, strict=True)]
        encoder = self.read(CLIPTextModelWithProjection, encoder_name)
        found = []
        for ids_1L in ids:
            output = encoder(ids_1L, output_hidden_states=True)
            # SD3 was trained on CLIP's last layer but one.
            hidden_1LD, pooled_1P = output.hidden_states[-2], output.text_embeds
            found.append((hidden_1LD.to("cpu", self.dtype), pooled_1P.to("cpu", self.dtype)))
        return found

    def _t5(self, prompts: Sequence[str], max_sequence_length: int, cut: list[list[str]]) -> list[Tensor]:
        if not (self.model.folder / "text_encoder_3").is_dir():
            width = int(self.model.config_of("transformer")["joint_attention_dim"])
            return [torch.zeros(1, max_sequence_length, width, dtype=self.dtype) for _ in prompts]
        tokenizer = AutoTokenizer.from_pretrained(self.model.folder / "tokenizer_3")
        ids = [
            self._token_ids(tokenizer, *pair, max_sequence_length, "T5")
            for pair in zip(prompts, cut, strict=True)
        ]
        encoder = self.read(T5EncoderModel, "text_encoder_3")
        return [encoder(ids_1L).last_hidden_state.to("cpu", self.dtype) for ids_1L in ids]

    def read(self, kind: Any, name: str) -> Any:
        encoder = kind.from_pretrained(
            self.model.folder / name, variant=self.variant, dtype=self.dtype, use_safetensors=True
        )
        return encoder.to(self.device)

    def _token_ids(self, tokenizer: Any, prompt: str, cut: list[str], length: int, encoder: str) -> Tensor:
        """Return the ids of exactly `length` tokens, of shape (1, length), on the device."""
        needed = len(tokenizer([prompt], verbose=False).input_ids[0])
        if needed > length:
            cut.append(f"{encoder} reads the first {length} of the prompt's {needed} tokens")
        tokens = tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids_1L: Tensor = tokens.input_ids
        return ids_1L.to(self.device)


def warn_of_cut_prompts(
    prompts: Sequence[str], embeds: Sequence[PromptEmbeds], warn: Callable[[str], None]
) -> None:
    """Tell `warn` which prompts are longer than an encoder reads; of many, the first ones by their words."""
    cut = [(prompt, found.warnings) for prompt, found in zip(prompts, embeds, strict=True) if found.warnings]
    for prompt, warnings in cut[:_NAMED_PROMPTS]:
        shown = prompt if len(prompt) <= _SHOWN_LETTERS else prompt[:_SHOWN_LETTERS] + "..."
        for warning in warnings:
            warn(warning if len(prompts) == 1 else f"{warning}: {shown!r}")
    if len(cut) > _NAMED_PROMPTS:
        warn(f"{len(cut) - _NAMED_PROMPTS} more prompts are longer than an encoder reads")


@dataclass(frozen=True)
class CachedEncoders:
    """Text encoders that are not read when `folder`, which need not be writable, holds their embeddings."""

    encoders: TextEncoders
    folder: Path

    @classmethod
    def from_option(cls, encoders: TextEncoders, folder: str | None) -> "CachedEncoders":
        """Return `encoders` with the cache in `folder`; None is the folder of this user."""
        return cls(encoders, default_folder() if folder is None else Path(os.path.expanduser(folder)))  # noqa: PTH111 - accepts an unknown user's home

    def encode_all(self, prompts: Sequence[str], max_sequence_length: int) -> list[PromptEmbeds]:
        """Return what `TextEncoders.encode_all` does; they are read for what is not in the folder."""
        shared = self._facts(max_sequence_length)
        facts = [shared | {"prompt": prompt} for prompt in prompts]
        names = [f"{sha256_text(canonical_json(each))}.safetensors" for each in facts]
        facts_of = dict(zip(names, facts, strict=True))
        found = {name: self._read(name, each) for name, each in facts_of.items()}
        known = [entry for entry in found.values() if entry is not None]
        if known:
            say(f"prompt embeddings from the cache, {_size(known)}")
        missing = {name: facts_of[name] for name, entry in found.items() if entry is None}
        if missing:
            texts = [each["prompt"] for each in missing.values()]
            say(f"encoding the prompt {texts[0]!r}" if len(texts) == 1 else f"encoding {len(texts)} prompts")
            # Of all prompts together, below.
            silent = replace(self.encoders, warn=lambda warning: None)
            made = silent.encode_all(texts, max_sequence_length)
            found |= dict(zip(missing, made, strict=True))
            self._write(missing, made)
        embeds = [entry for name in names if (entry := found[name]) is not None]
        warn_of_cut_prompts(prompts, embeds, self.encoders.warn)
        return embeds

    def _facts(self, max_sequence_length: int) -> dict[str, Any]:
        """Return everything that determines the bits of embeddings, except the prompt."""
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

    def _read(self, name: str, facts: dict[str, Any]) -> PromptEmbeds | None:
        try:
            content = (self.folder / name).read_bytes()
        except OSError:
            return None
        try:
            return _parsed(content, facts)
        # Reading a damaged file may raise any error.
        except Exception as error:
            say(f"cached prompt embeddings are broken and made again: {error}")
            return None

    def _write(self, facts_of: dict[str, dict[str, Any]], made: Sequence[PromptEmbeds]) -> None:
        try:
            for (name, facts), embeds in zip(facts_of.items(), made, strict=True):
                write_bytes(self.folder / name, _content(facts, embeds))
        except OSError as error:
            # The warning goes where no path of this machine belongs.
            say(f"prompt cache: {error}")
            self.encoders.warn(
                f"prompt embeddings are not cached: the folder cannot be written ({error.strerror}); "
                f"name another with --prompt-cache-dir"
            )
            return
        say(f"prompt embeddings cached, {_size(made)}")


def default_folder() -> Path:
    return cache_folder("prompts")


def _content(facts: dict[str, Any], embeds: PromptEmbeds) -> bytes:
    tensors = {"sequence": embeds.sequence_1LD.contiguous(), "pooled": embeds.pooled_1P.contiguous()}
    # One entry, since the order of several is by chance and equal embeddings make equal files.
    kept = {"facts": facts, "warnings": list(embeds.warnings), "sha256": _digest(tensors)}
    content: bytes = save(tensors, {_METADATA: json.dumps(kept, sort_keys=True)})
    return content


def _parsed(content: bytes, facts: dict[str, Any]) -> PromptEmbeds:
    """Return what `_content` was made of; any error where the content is damaged, or of other facts."""
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
