"""The transformer of a run: how it is read, and what it is told of timestep and prompt."""

from collections.abc import Collection
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.tuning.hf_diffusers.sd3.batches import load_sigmas
from mimicry.tuning.hf_diffusers.sd3.lora import named_layers
from mimicry.tuning.hf_diffusers.sd3.modulation import (
    CachedModulationTransformer,
    ModulationCache,
    ModulationKey,
    WeightFiles,
    compute_modulation,
    row_width,
    trained_modulation,
)
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.quantization import loading_arguments, round_inputs
from mimicry.tuning.hf_diffusers.sd3.records import say
from mimicry.tuning.hf_diffusers.sd3.sampling import NEGATIVE, PROMPT, StepModulation, sampling_timesteps
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.training.flow_matching import draw_timestep_index
from mimicry.tuning.hf_diffusers.training.host_memory import host_memory_problem


def training_keys(setup: Setup) -> set[ModulationKey]:
    """Return what this process's training asks of the transformer: timesteps and prompts drawn together."""
    config, level_count = setup.job.config, len(load_sigmas(setup).timesteps)
    samples = (plan.sample(index) for index in setup.own_samples() for plan in setup.plans)
    return {
        (draw_timestep_index(config, sample, level_count), setup.prompts.index_of(sample))
        for sample in samples
    }


def load_transformer(setup: Setup, keys: Collection[ModulationKey] | None = None) -> SD3Transformer2DModel:
    """Read the transformer in the training precision, or quantised.

    Where a conditioning table can take their place, a third of the weights is not read (see `conditioning`).

    Args:
        keys: all that the run will ask of it; by default what training asks.
    """
    tabled = False
    if setup.job.config.conditioning_table:
        keys = training_keys(setup) if keys is None else keys
        obstacle = table_obstacle(setup, named_layers(setup.job.config), len(keys))
        tabled = obstacle is None
        if not tabled:
            say(f"no conditioning table: {obstacle}")
    return read_transformer(setup, setup.dtype, tabled=tabled)


def read_transformer(setup: Setup, dtype: torch.dtype, *, tabled: bool) -> SD3Transformer2DModel:
    """Read the base model's transformer, tensor by tensor onto the device; `tabled` for use with a table."""
    config = setup.job.config
    kind: Any = CachedModulationTransformer if tabled else SD3Transformer2DModel
    transformer: SD3Transformer2DModel = kind.from_pretrained(
        setup.model.folder / "transformer",
        variant=config.variant,
        torch_dtype=dtype,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        # Without it, all weights would be in host memory before the first of them is moved.
        device_map={"": setup.device},
        **loading_arguments(config, setup.dtype),
    )
    if config.quantize_base != "none":
        round_inputs(transformer, setup.dtype)
    return transformer


def table_obstacle(setup: Setup, targets: Collection[str], condition_count: int) -> str | None:
    """Return why a conditioning table would be wrong or impossible, or None.

    Args:
        targets: the layers that the adapter trains, as peft takes them.
        condition_count: the rows that the table would have.
    """
    trained = trained_modulation(int(setup.model.config_of("transformer")["num_layers"]), targets)
    if trained:
        return f"the adapter trains {', '.join(trained[:3])}{', ...' if len(trained) > 3 else ''}"
    weights = transformer_weights(setup)
    if weights is None:
        return f"the weights in {setup.model.folder / 'transformer'} are no safetensors files"
    problem = host_memory_problem(condition_count * row_width(weights) * setup.dtype.itemsize)
    return problem and f"with {condition_count} pairs of timestep and prompt it would take {problem}"


def transformer_weights(setup: Setup) -> WeightFiles | None:
    """Return the files of the transformer's weights; None where they are no safetensors files."""
    return WeightFiles.find(setup.model.folder / "transformer", setup.job.config.variant)


def make_table(
    setup: Setup,
    transformer: SD3Transformer2DModel,
    *,
    timesteps_T: Tensor,
    pooled_NP: Tensor,
    keys: Collection[ModulationKey] | None = None,
) -> ModulationCache | None:
    """Compute the rows that the run will need; None for a transformer that computes them itself.

    Args:
        timesteps_T: what the transformer is told for each row of the sigma table, fp32.
        pooled_NP: the pooled prompts, on the device.
        keys: rows of `timesteps_T` and of `pooled_NP` that go together; by default those of training.
    """
    weights = transformer_weights(setup)
    if not isinstance(transformer, CachedModulationTransformer) or weights is None:
        return None
    with setup.accelerator.autocast():
        table = compute_modulation(
            transformer,
            weights,
            timesteps_T=timesteps_T,
            pooled_NP=pooled_NP,
            keys=training_keys(setup) if keys is None else keys,
            batch_size=setup.forward_batch_size,
        )
    say(f"conditioning table: {len(table.place_of)} rows, {table.byte_count / 2**20:.1f} MiB of host memory")
    return table


def sampling_modulation(
    setup: Setup,
    transformer: SD3Transformer2DModel,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    *,
    steps: int,
    batch_size: int,
) -> StepModulation | None:
    """Return what a `CachedModulationTransformer` takes instead of pooled prompts; None for any other.

    The table is one of its own, under the caller's autocast: its timesteps are not those of training.
    """
    weights = transformer_weights(setup)
    if not isinstance(transformer, CachedModulationTransformer) or weights is None:
        return None
    table = compute_modulation(
        transformer,
        weights,
        timesteps_T=sampling_timesteps(setup.model.folder / "scheduler", steps),
        pooled_NP=torch.cat([prompt.pooled_1P, negative.pooled_1P]),
        keys=[(step, which) for step in range(steps) for which in (PROMPT, NEGATIVE)],
        batch_size=batch_size,
    )
    return lambda step, which: table.rows([step], [which])
