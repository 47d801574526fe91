"""Reading the transformer, whole or with a modulation cache in place of a third of its weights."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.common.hardware import host_memory_problem
from mimicry.tuning.hf_diffusers.sd3.modulation import (
    REPLACED,
    CachedModulationTransformer,
    ModulationCache,
    ModulationKey,
    WeightFiles,
    compute_modulation,
    row_width,
    trained_modulation,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.device import loading_arguments, training_dtype
from mimicry.tuning.hf_diffusers.training.fused_layers import use_fused_norms
from mimicry.tuning.options.config import TuningConfig

# What the cache replaces is never quantised, so that a training is the same with a cache and without; nor is
# the last layer, which the velocity comes out of.
UNQUANTISED = (*REPLACED, "proj_out")

# The layers of query, key and value, as diffusers names them, and the norms behind them.
_IMAGE = (("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v", None))
_PROMPT = (("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj", None))


def read_transformer(
    model: BaseModel,
    config: TuningConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cached_modulation: bool = False,
) -> SD3Transformer2DModel:
    """Read the transformer, tensor by tensor onto the device, quantised where that is asked for."""
    kind: Any = CachedModulationTransformer if cached_modulation else SD3Transformer2DModel
    transformer: SD3Transformer2DModel = kind.from_pretrained(
        model.folder / "transformer",
        variant=config.variant,
        torch_dtype=dtype,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        # Without it, all weights would be in host memory before the first of them is moved.
        device_map={"": device},
        **loading_arguments(config, training_dtype(config), UNQUANTISED),
    )
    use_fused_layers(transformer)
    return transformer


def use_fused_layers(transformer: SD3Transformer2DModel) -> None:
    """Let fewer and larger kernels compute norms and attention, with the same weights."""
    use_fused_norms(transformer)
    transformer.set_attn_processor(JointAttention())


def cache_obstacle(
    model: BaseModel, config: TuningConfig, targets: Collection[str], key_count: int
) -> str | None:
    """Return why a cache of `key_count` rows would be wrong or impossible with these targets, or None."""
    trained = trained_modulation(int(model.config_of("transformer")["num_layers"]), targets)
    if trained:
        return f"the adapter trains {', '.join(trained[:3])}{', ...' if len(trained) > 3 else ''}"
    weights = transformer_weights(model, config)
    if weights is None:
        return f"the weights in {model.folder / 'transformer'} are not safetensors files"
    problem = host_memory_problem(key_count * row_width(weights) * training_dtype(config).itemsize)
    return problem and f"with {key_count} pairs of timestep and prompt it would take {problem}"


def transformer_weights(model: BaseModel, config: TuningConfig) -> WeightFiles | None:
    """Return the files of the transformer's weights; None where they are not safetensors files."""
    return WeightFiles.find(model.folder / "transformer", config.variant)


def cache_modulation(
    transformer: SD3Transformer2DModel,
    model: BaseModel,
    config: TuningConfig,
    *,
    timesteps_T: Tensor,
    pooled_NP: Tensor,
    keys: Collection[ModulationKey],
    batch_size: int,
) -> ModulationCache | None:
    """Compute the rows of `keys`, see `compute_modulation`; None for a transformer that needs no cache."""
    weights = transformer_weights(model, config)
    if not isinstance(transformer, CachedModulationTransformer) or weights is None:
        return None
    return compute_modulation(
        transformer,
        weights,
        timesteps_T=timesteps_T,
        pooled_NP=pooled_NP,
        keys=keys,
        batch_size=batch_size,
    )


class JointAttention:
    """Computes the attention of a transformer block; diffusers calls it with the block's layers.

    Queries and keys are normalised before heads and tokens change places: diffusers' own processor copies
    each of them before the norm and after it, and again in the backward pass.
    """

    def __call__(
        self,
        layers: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the image attends to, (B, S, D), and with a prompt what the prompt attends to.

        `hidden_states` is the image, `encoder_hidden_states` the prompt, (B, S, D) each.
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
