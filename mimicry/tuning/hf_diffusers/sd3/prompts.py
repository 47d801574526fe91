"""Prompt embeddings: each text encoder in turn is read, used and freed; one at a time is in memory."""

from dataclasses import dataclass
from pathlib import Path

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


@torch.no_grad()
def encode_prompt(
    model: BaseModel,
    prompt: str,
    *,
    max_sequence_length: int,
    variant: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> PromptEmbeds:
    """Return the embeddings of `prompt`, on the CPU in `dtype`.

    Args:
        max_sequence_length: tokens that T5 reads; CLIP always reads as many as it was made for.
    """
    first_1LD, first_1P = _clip(model.folder, "text_encoder", "tokenizer", prompt, variant, device, dtype)
    second_1LD, second_1P = _clip(
        model.folder, "text_encoder_2", "tokenizer_2", prompt, variant, device, dtype
    )
    clip_1LD = torch.cat([first_1LD, second_1LD], dim=-1)
    if (model.folder / "text_encoder_3").is_dir():
        t5_1LD = _t5(model.folder, prompt, max_sequence_length, variant, device, dtype)
    else:
        width = int(model.config_of("transformer")["joint_attention_dim"])
        t5_1LD = torch.zeros(1, max_sequence_length, width, dtype=dtype)
    clip_1LD = F.pad(clip_1LD, (0, t5_1LD.shape[-1] - clip_1LD.shape[-1]))
    return PromptEmbeds(
        sequence_1LD=torch.cat([clip_1LD, t5_1LD], dim=1), pooled_1P=torch.cat([first_1P, second_1P], dim=-1)
    )


def _clip(
    folder: Path,
    encoder_name: str,
    tokenizer_name: str,
    prompt: str,
    variant: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder / tokenizer_name)
    encoder = CLIPTextModelWithProjection.from_pretrained(
        folder / encoder_name, variant=variant, dtype=dtype
    ).to(device)
    output = encoder(
        _token_ids(tokenizer, prompt, tokenizer.model_max_length).to(device), output_hidden_states=True
    )
    # SD3 was trained on CLIP's last layer but one.
    return output.hidden_states[-2].to("cpu", dtype), output.text_embeds.to("cpu", dtype)


def _t5(
    folder: Path,
    prompt: str,
    max_sequence_length: int,
    variant: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer_3")
    encoder = T5EncoderModel.from_pretrained(folder / "text_encoder_3", variant=variant, dtype=dtype)
    encoder = encoder.to(device)
    output = encoder(_token_ids(tokenizer, prompt, max_sequence_length).to(device))
    hidden_1LD: Tensor = output.last_hidden_state
    return hidden_1LD.to("cpu", dtype)


def _token_ids(tokenizer: AutoTokenizer, prompt: str, length: int) -> Tensor:
    tokens = tokenizer(
        [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = tokens.input_ids
    return ids
