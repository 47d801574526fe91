"""Prompt embeddings: each text encoder in turn is read, used and freed; one at a time is in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from mimicry.tuning.hf_diffusers.base_model import BaseModel

# Warnings name this many of the prompts that are cut; the rest are counted.
_NAMED_PROMPTS = 3
_SHOWN_LETTERS = 60


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
    """The text encoders of a base model; each is read when it is needed.

    `warn` is told of a prompt that is longer than an encoder reads.
    """

    model: BaseModel
    variant: str | None
    device: torch.device
    dtype: torch.dtype
    warn: Callable[[str], None]

    def encode(self, prompt: str, max_sequence_length: int) -> PromptEmbeds:
        """Return the embeddings of one prompt; see `encode_all`."""
        return self.encode_all([prompt], max_sequence_length)[0]

    @torch.no_grad()
    def encode_all(self, prompts: Sequence[str], max_sequence_length: int) -> list[PromptEmbeds]:
        """Return the embeddings of `prompts`, on the CPU; each encoder is read once for all of them.

        A prompt is encoded by itself: its embeddings do not depend on those that it comes with.

        Args:
            max_sequence_length: tokens that T5 reads; CLIP always reads as many as it was made for.
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
        """Read the encoder `name` of the model onto the device."""
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
