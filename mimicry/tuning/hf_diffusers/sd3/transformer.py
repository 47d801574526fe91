"""The transformer of a run: how it is read, and what it is told of timestep and prompt."""

from collections.abc import Collection
from typing import Any

from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.tuning.hf_diffusers.sd3.conditioning import (
    Condition,
    ConditioningTable,
    TabledTransformer,
    WeightFiles,
    compute_table,
    trained_conditioning,
)
from mimicry.tuning.hf_diffusers.sd3.flow_matching import draw_timestep_index
from mimicry.tuning.hf_diffusers.sd3.job import Setup
from mimicry.tuning.hf_diffusers.sd3.lora import named_layers
from mimicry.tuning.hf_diffusers.sd3.records import say


def load_transformer(setup: Setup) -> SD3Transformer2DModel:
    """Read the transformer in the training precision, tensor by tensor onto the device.

    Where a conditioning table can take their place, a third of the weights is not read (see `conditioning`).
    """
    kind: Any = SD3Transformer2DModel
    if setup.job.config.conditioning_table:
        obstacle = table_obstacle(setup, named_layers(setup.job.config))
        if obstacle is None:
            kind = TabledTransformer
        else:
            say(f"no conditioning table: {obstacle}")
    return kind.from_pretrained(
        setup.model.folder / "transformer",
        variant=setup.job.config.variant,
        torch_dtype=setup.dtype,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        # Without it, all weights would be in host memory before the first of them is moved.
        device_map={"": setup.device},
    )


def table_obstacle(setup: Setup, targets: Collection[str]) -> str | None:
    """Return why a conditioning table would be wrong or impossible, or None.

    Args:
        targets: the layers that the adapter trains, as peft takes them.
    """
    trained = trained_conditioning(int(setup.model.config_of("transformer")["num_layers"]), targets)
    if trained:
        return f"the adapter trains {', '.join(trained[:3])}{', ...' if len(trained) > 3 else ''}"
    if WeightFiles.find(setup.model.folder / "transformer", setup.job.config.variant) is None:
        return f"the weights in {setup.model.folder / 'transformer'} are no safetensors files"
    return None


def make_table(
    setup: Setup,
    transformer: SD3Transformer2DModel,
    *,
    timesteps_T: Tensor,
    pooled_NP: Tensor,
    extra_timesteps: Collection[int] = (),
) -> ConditioningTable | None:
    """Compute the rows that the run will need; None for a transformer that computes them itself.

    Args:
        timesteps_T: what the transformer is told for each row of the sigma table, fp32.
        pooled_NP: the pooled prompts, of which training uses the first, on the device.
        extra_timesteps: rows of the sigma table that are needed beside those that training draws.
    """
    config = setup.job.config
    weights = WeightFiles.find(setup.model.folder / "transformer", config.variant)
    if not isinstance(transformer, TabledTransformer) or weights is None:
        return None
    levels = {
        draw_timestep_index(config, setup.samples.sample(index), len(timesteps_T))
        for index in range(setup.sample_count)
    }
    conditions: set[Condition] = {(level, 0) for level in levels.union(extra_timesteps)}
    with setup.accelerator.autocast():
        table = compute_table(
            transformer,
            weights,
            timesteps_T=timesteps_T,
            pooled_NP=pooled_NP,
            conditions=conditions,
            batch_size=config.train_batch_size,
        )
    say(f"conditioning table: {len(conditions)} rows, {table.byte_count / 2**20:.1f} MiB of host memory")
    return table
