"""The modulation cache, called conditioning table in options and records.

A third of the parameters of Stable Diffusion 3.5 Large, those of time_text_embed and of the linear layers of
its adaptive norms, sees timestep and pooled prompt alone. With frozen weights and few prompts their outputs
are one row of numbers for each timestep and prompt of the run. The cache holds these rows in host memory,
computed ahead; the weights are never part of the model. Results are the same to the last bit.
"""

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    SD35AdaLayerNormZeroX,
)
from safetensors import safe_open
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.common.hardware import host_memory_problem
from mimicry.tuning.hf_diffusers.training.device import send

_ADAPTIVE_NORMS = (AdaLayerNormContinuous, AdaLayerNormZero, SD35AdaLayerNormZeroX)
_EMBEDDING = "time_text_embed"
# What the cache replaces, by the names of the parts that hold it.
REPLACED = (_EMBEDDING, "norm1", "norm1_context", "norm_out")
_EMBEDDING_LAYERS = tuple(
    f"{_EMBEDDING}.{part}.linear_{number}"
    for part in ("timestep_embedder", "text_embedder")
    for number in (1, 2)
)

_REPLACED_BIAS = re.compile(r"(^norm_out|\.norm1(_context)?)\.linear\.bias$")
# So many keys go through a layer before they leave the device: with captions there may be many keys.
CHUNK = 256

# A timestep, as its row in the sigma table, and a prompt, as its row among the pooled prompts.
ModulationKey = tuple[int, int]


class ColumnSlice(torch.nn.Module):
    """Stands in for a linear layer: returns that part of each row which the layer would have computed."""

    columns: Tensor

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        # A buffer, not two numbers: compiled code would be made anew for each block's numbers.
        self.register_buffer("columns", torch.arange(start, start + width), persistent=False)

    def forward(self, rows_BR: Tensor) -> Tensor:
        return rows_BR.index_select(1, self.columns)


class GivenRows(torch.nn.Module):
    """Stands in for time_text_embed: returns the rows that came as `pooled_projections`."""

    def forward(self, timestep: Tensor, rows_BR: Tensor) -> Tensor:
        return rows_BR


class CachedModulationTransformer(SD3Transformer2DModel):  # type: ignore[misc]
    """The transformer without what the table replaces; it takes rows, (B, R), as `pooled_projections`."""

    _keys_to_ignore_on_load_unexpected = (
        rf"^{_EMBEDDING}\.",
        r"^transformer_blocks\.\d+\.norm1(_context)?\.linear\.",
        r"^norm_out\.linear\.",
    )

    # The signature is where diffusers looks for the names that a configuration may have.
    @functools.wraps(SD3Transformer2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *sizes: Any, **named_sizes: Any) -> None:
        super().__init__(*sizes, **named_sizes)
        self.time_text_embed = GivenRows()
        start = 0
        for norm in self.modules():
            if isinstance(norm, _ADAPTIVE_NORMS):
                width = norm.linear.out_features
                norm.silu, norm.linear = torch.nn.Identity(), ColumnSlice(start, width)
                start += width

    def replaced_layers(self) -> dict[str, ColumnSlice]:
        """Return what stands in for each adaptive norm's linear layer, by that layer's name, in row order."""
        return {name: module for name, module in self.named_modules() if isinstance(module, ColumnSlice)}


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a model in safetensors files, one or several, read one by one."""

    files: Mapping[str, Path]

    @classmethod
    def find(cls, folder: Path, variant: str | None) -> "WeightFiles | None":
        """Return the weights in `folder`, or None where they are in another format."""
        stem, mark = "diffusion_pytorch_model", f".{variant}" if variant else ""
        for index in (f"{stem}.safetensors.index{mark}.json", f"{stem}{mark}.safetensors.index.json"):
            if (folder / index).is_file():
                names = json.loads((folder / index).read_text("utf-8"))["weight_map"]
                return cls({tensor: folder / name for tensor, name in names.items()})
        single = folder / f"{stem}{mark}.safetensors"
        if not single.is_file():
            return None
        with safe_open(single, framework="pt") as file:
            return cls(dict.fromkeys(file.keys(), single))

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self.files[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).to(device, dtype)
        return tensor


@dataclass(frozen=True)
class ModulationCache:
    """The rows of a run, of R numbers each, in host memory.

    `rows_NSR` holds N keys; `place_of` says which is where. S is the size of a training batch if the
    same key gives other numbers in another place of the batch, which some kernels do; else S is 1.
    """

    rows_NSR: Tensor
    place_of: Mapping[ModulationKey, int]
    device: torch.device

    def rows(self, timestep_indices: Sequence[int], prompt_indices: Sequence[int]) -> Tensor:
        """Return the rows of a batch, (B, R), on the device; on any thread."""
        places = [self.place_of[key] for key in zip(timestep_indices, prompt_indices, strict=True)]
        slots = [slot % self.rows_NSR.shape[1] for slot in range(len(places))]
        # Only these are copied to pinned memory, 2.2 MB each for Stable Diffusion 3.5 Large. Pinned memory
        # comes in powers of two, and the system can neither swap it out nor give it to anything else.
        return send(self.rows_NSR[places, slots], self.device)


def row_width(weights: WeightFiles) -> int:
    """Return R, the numbers in a row of the table for a transformer of these weights; reads headers only."""
    return sum(weights.shape(name)[0] for name in weights.files if _REPLACED_BIAS.search(name))


@torch.no_grad()
def compute_modulation(
    transformer: CachedModulationTransformer,
    weights: WeightFiles,
    *,
    timesteps_T: Tensor,
    pooled_NP: Tensor,
    keys: Collection[ModulationKey],
    batch_size: int,
) -> ModulationCache:
    """Compute the rows of `keys`.

    Each key is computed as a whole batch of `batch_size`: a linear layer rounds a lone row otherwise than one
    among several. Only one linear layer's weights are in memory at a time.

    Args:
        timesteps_T: what the transformer is told for each row of the sigma table, fp32.
        pooled_NP: the pooled prompts, on the training's device and in its precision.

    Raises:
        TrainingFailed: rows depend on their place in the batch, and do not fit into host memory.
    """
    device, dtype = pooled_NP.device, pooled_NP.dtype
    order = sorted(set(keys))
    embed = _read_embedding(transformer, weights, device, dtype)
    activations = [
        F.silu(
            embed(
                timesteps_T[timestep].repeat(batch_size).to(device),
                pooled_NP[prompt : prompt + 1].expand(batch_size, -1),
            )
        )
        for timestep, prompt in order
    ]
    layers = transformer.replaced_layers()
    width = sum(len(layer.columns) for layer in layers.values())
    rows_NSR = torch.zeros(len(order), 1, width, dtype=dtype)
    for name, layer in layers.items():
        weight, bias = (weights.read(f"{name}.{part}", device, dtype) for part in ("weight", "bias"))
        rows_NSR = _fill_columns(rows_NSR, layer, weight, bias, activations)
    return ModulationCache(
        rows_NSR=rows_NSR, place_of={key: place for place, key in enumerate(order)}, device=device
    )


def _fill_columns(
    rows_NSR: Tensor, layer: ColumnSlice, weight: Tensor, bias: Tensor, activations: Sequence[Tensor]
) -> Tensor:
    """Put what a layer makes of `activations` into its columns; rows get a slot for each place if need be."""
    for first in range(0, len(activations), CHUNK):
        chunk = activations[first : first + CHUNK]
        part_NBC = torch.stack([F.linear(activation, weight, bias) for activation in chunk])
        if rows_NSR.shape[1] == 1:
            if torch.equal(part_NBC, part_NBC[:, :1].expand_as(part_NBC)):
                part_NBC = part_NBC[:, :1]
            else:
                if (problem := host_memory_problem(rows_NSR.nbytes * part_NBC.shape[1])) is not None:
                    raise TrainingFailed(
                        f"the conditioning table depends on the place in the batch here, and would take "
                        f"{problem}; type --no-conditioning-table"
                    )
                rows_NSR = rows_NSR.repeat(1, part_NBC.shape[1], 1)
        start = int(layer.columns[0])
        rows_NSR[first : first + CHUNK, :, start : start + part_NBC.shape[-1]] = part_NBC.cpu()
    return rows_NSR


def trained_modulation(block_count: int, targets: Collection[str]) -> list[str]:
    """Return which of the replaced layers an adapter on `targets`, named as in peft, would train."""
    in_block = ("norm1.linear", "norm1_context.linear")
    names = [f"transformer_blocks.{block}.{name}" for block in range(block_count) for name in in_block]
    return [
        name
        for name in (*_EMBEDDING_LAYERS, *names, "norm_out.linear")
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]


def _read_embedding(
    transformer: CachedModulationTransformer, weights: WeightFiles, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    with init_empty_weights():
        embedding = CombinedTimestepTextProjEmbeddings(
            embedding_dim=transformer.inner_dim,
            pooled_projection_dim=transformer.config.pooled_projection_dim,
        )
    state = {name: weights.read(f"{_EMBEDDING}.{name}", device, dtype) for name in embedding.state_dict()}
    embedding.load_state_dict(state, assign=True)
    module: torch.nn.Module = embedding
    return module
