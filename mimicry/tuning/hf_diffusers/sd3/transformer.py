"""Reading the transformer, whole or with a modulation cache in place of a third of its weights."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.common.hardware import host_memory_problem
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.lora_modules import named_layers
from mimicry.tuning.hf_diffusers.sd3.attention import JointAttention
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
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.sampling import NEGATIVE, PROMPT, StepModulation, sampling_timesteps
from mimicry.tuning.hf_diffusers.training.console import say
from mimicry.tuning.hf_diffusers.training.fused_layers import use_fused_norms
from mimicry.tuning.hf_diffusers.training.precision import training_dtype
from mimicry.tuning.hf_diffusers.training.quantization import loading_arguments
from mimicry.tuning.options.config import TuningConfig

# What the cache replaces is never quantised, so that a training is the same with a cache and without; nor is
# the last layer, which the velocity comes out of.
UNQUANTISED = (*REPLACED, "proj_out")


def read_transformer(
    model: BaseModel,
    config: TuningConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cached_modulation: bool = False,
) -> SD3Transformer2DModel:
    """Read the base model's transformer, tensor by tensor onto the device, quantised where that is asked for.

    Args:
        cached_modulation: for use with a modulation cache.
    """
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
    """Return why a modulation cache would be wrong or impossible, or None.

    Args:
        targets: the layers that the adapter trains, as peft takes them.
        key_count: the rows that the cache would have.
    """
    trained = trained_modulation(int(model.config_of("transformer")["num_layers"]), targets)
    if trained:
        return f"the adapter trains {', '.join(trained[:3])}{', ...' if len(trained) > 3 else ''}"
    weights = transformer_weights(model, config)
    if weights is None:
        return f"the weights in {model.folder / 'transformer'} are not safetensors files"
    problem = host_memory_problem(key_count * row_width(weights) * training_dtype(config).itemsize)
    return problem and f"with {key_count} pairs of timestep and prompt it would take {problem}"


def can_train_cached(model: BaseModel, config: TuningConfig, key_count: int) -> bool:
    """Return whether a training is to have a modulation cache and can have one; say why not."""
    if not config.conditioning_table:
        return False
    obstacle = cache_obstacle(model, config, named_layers(config), key_count)
    if obstacle is not None:
        say(f"no conditioning table: {obstacle}")
    return obstacle is None


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
    """Compute the rows of `keys`; None for a transformer that needs no cache.

    The other arguments are those of `compute_modulation`.
    """
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


def sampling_modulation(
    transformer: SD3Transformer2DModel,
    model: BaseModel,
    config: TuningConfig,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    *,
    steps: int,
    batch_size: int,
) -> StepModulation | None:
    """Return what a `CachedModulationTransformer` takes instead of pooled prompts; None for any other.

    See `sampling_modulations`, for one prompt.
    """
    made = sampling_modulations(
        transformer, model, config, [prompt, negative], negative=1, steps=steps, batch_size=batch_size
    )
    return made[0] if made else None


def sampling_modulations(
    transformer: SD3Transformer2DModel,
    model: BaseModel,
    config: TuningConfig,
    prompts: Sequence[PromptEmbeds],
    *,
    negative: int,
    steps: int,
    batch_size: int,
) -> list[StepModulation] | None:
    """Return for each of `prompts` what a `CachedModulationTransformer` takes instead of pooled prompts.

    They share a cache of `steps` rows a prompt, whose timesteps are not those of training. Return None
    for a transformer that needs no cache.

    Args:
        negative: which of the prompts is the negative prompt.
    """
    cache = cache_modulation(
        transformer,
        model,
        config,
        timesteps_T=sampling_timesteps(model.folder / "scheduler", steps),
        pooled_NP=torch.cat([prompt.pooled_1P for prompt in prompts]),
        keys=list(product(range(steps), range(len(prompts)))),
        batch_size=batch_size,
    )
    if cache is None:
        return None
    return [partial(_row, cache, {PROMPT: index, NEGATIVE: negative}) for index in range(len(prompts))]


def _row(cache: ModulationCache, prompt_indices: Mapping[int, int], step: int, which: int) -> Tensor:
    return cache.rows([step], [prompt_indices[which]])
