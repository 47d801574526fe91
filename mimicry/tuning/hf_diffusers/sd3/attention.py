"""Joint attention of image and prompt (Esser et al. 2024, arXiv:2403.03206, section 4), with few copies.

Suffixes: B batch, N tokens of both, S tokens of one, H heads, K width of a head, D = H x K.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The layers of query, key and value, as diffusers names them, and the norms behind them.
_IMAGE = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", None))
_PROMPT = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj", None))


class JointAttention:
    """Computes the attention of a transformer block; diffusers calls it with the block's layers.

    Queries and keys are normalised before heads and tokens change places, and stay where they are in memory:
    diffusers' own processor copies each of them before the norm and after it, and again in the backward pass.
    """

    def __call__(
        self,
        layers: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the image attends to, (B, S, D), and with a prompt what the prompt attends to.

        Args:
            hidden_states: the image, of shape (B, S, D).
            encoder_hidden_states: the prompt, of shape (B, S, D).
            attention_mask: diffusers passes it on, and Stable Diffusion 3 has none.
        """
        image = _project(layers, hidden_states, _IMAGE)
        if encoder_hidden_states is None:
            return _out(layers, _attend(*image))
        prompt = _project(layers, encoder_hidden_states, _PROMPT)
        attended_BND = _attend(*(torch.cat(parts, dim=1) for parts in zip(image, prompt, strict=True)))
        lengths = [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        image_BSD, prompt_BSD = torch.split(attended_BND, lengths, dim=1)
        if not layers.context_pre_only:
            prompt_BSD = layers.to_add_out(prompt_BSD)
        return _out(layers, image_BSD), prompt_BSD


def _project(layers: Any, values_BSD: Tensor, names: Sequence[tuple[str, str | None]]) -> list[Tensor]:
    """Return query, key and value, of shape (B, S, H, K); `names` are those of their layers and norms."""
    projected = []
    for layer, norm in names:
        projected_BSD = getattr(layers, layer)(values_BSD)
        heads_BSHK = projected_BSD.view(*projected_BSD.shape[:-1], layers.heads, -1)
        normalise = None if norm is None else getattr(layers, norm)
        projected.append(heads_BSHK if normalise is None else normalise(heads_BSHK))
    return projected


def _attend(query_BNHK: Tensor, key_BNHK: Tensor, value_BNHK: Tensor) -> Tensor:
    attended_BHNK = F.scaled_dot_product_attention(
        query_BNHK.transpose(1, 2), key_BNHK.transpose(1, 2), value_BNHK.transpose(1, 2)
    )
    return attended_BHNK.transpose(1, 2).flatten(2)


def _out(layers: Any, attended_BSD: Tensor) -> Tensor:
    linear, dropout = layers.to_out
    output_BSD: Tensor = dropout(linear(attended_BSD))
    return output_BSD
