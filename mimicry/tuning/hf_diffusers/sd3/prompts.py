"""Prompt embeddings: each text encoder in turn is read, used and freed; one at a time is in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from mimicry.tuning.base_model import BaseModel


@dataclass(frozen=True)
class PromptEmbeds:
    """What the transformer is told of one prompt.

    `sequence_1LD` holds the tokens of both CLIPs, side by side and padded to T5's width, then those of T5;
    `pooled_1P` the pooled outputs of both CLIPs, side by side.
    """

    sequence_1LD: Tensor
    pooled_1P: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptEmbeds":
        return PromptEmbeds(self.sequence_1LD.to(device, dtype), self.pooled_1P.to(device, dtype))


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a base model, none of which is in memory before it is needed.

    `warn` is told of a prompt that is longer than an encoder reads.
    """

    model: BaseModel
    variant: str | None
    device: torch.device
    dtype: torch.dtype
    warn: Callable[[str], None]

    @torch.no_grad()
    def encode(self, prompt: str, max_sequence_length: int) -> PromptEmbeds:
        """Return the embeddings of `prompt`, on the CPU.

        Args:
            max_sequence_length: tokens that T5 reads; CLIP always reads as many as it was made for.
        """
        first_1LD, first_1P = self._clip("text_encoder", "tokenizer", prompt)
        second_1LD, second_1P = self._clip("text_encoder_2", "tokenizer_2", prompt)
        clip_1LD = torch.cat([first_1LD, second_1LD], dim=-1)
        t5_1LD = self._t5(prompt, max_sequence_length)
        clip_1LD = F.pad(clip_1LD, (0, t5_1LD.shape[-1] - clip_1LD.shape[-1]))
        return PromptEmbeds(
            sequence_1LD=torch.cat([clip_1LD, t5_1LD], dim=1),
            pooled_1P=torch.cat([first_1P, second_1P], dim=-1),
        )

    def _clip(self, encoder_name: str, tokenizer_name: str, prompt: str) -> tuple[Tensor, Tensor]:
        tokenizer = AutoTokenizer.from_pretrained(self.model.folder / tokenizer_name)
        ids_1L = self._token_ids(tokenizer, prompt, tokenizer.model_max_length, "CLIP")
        encoder = self._read(CLIPTextModelWithProjection, encoder_name)
        output = encoder(ids_1L, output_hidden_states=True)
        # SD3 was trained on CLIP's last layer but one.
        return output.hidden_states[-2].to("cpu", self.dtype), output.text_embeds.to("cpu", self.dtype)

    def _t5(self, prompt: str, max_sequence_length: int) -> Tensor:
        if not (self.model.folder / "text_encoder_3").is_dir():
            width = int(self.model.config_of("transformer")["joint_attention_dim"])
            return torch.zeros(1, max_sequence_length, width, dtype=self.dtype)
        tokenizer = AutoTokenizer.from_pretrained(self.model.folder / "tokenizer_3")
        ids_1L = self._token_ids(tokenizer, prompt, max_sequence_length, "T5")
        hidden_1LD: Tensor = self._read(T5EncoderModel, "text_encoder_3")(ids_1L).last_hidden_state
        return hidden_1LD.to("cpu", self.dtype)

    def _read(self, kind: Any, name: str) -> Any:
        encoder = kind.from_pretrained(
            self.model.folder / name, variant=self.variant, dtype=self.dtype, use_safetensors=True
        )
        return encoder.to(self.device)

    def _token_ids(self, tokenizer: Any, prompt: str, length: int, encoder: str) -> Tensor:
        """Return the ids of exactly `length` tokens, of shape (1, length), on the device."""
        needed = len(tokenizer([prompt], verbose=False).input_ids[0])
        if needed > length:
            self.warn(f"{encoder} reads the first {length} of the prompt's {needed} tokens")
        tokens = tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids_1L: Tensor = tokens.input_ids
        return ids_1L.to(self.device)
