"""Adapters for a base model that nobody trained: each paints differently."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from mimicry.tuning.adapters import WEIGHTS
from mimicry.tuning.hf_diffusers.sd3.modulation import WeightFiles
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel

_RANK = 4


def write_adapter(folder: Path, model: BaseModel, layers: Sequence[str], seed: int) -> Path:
    """Write an adapter on all layers whose names end in one of `layers` into `folder`, and return that."""
    weights = WeightFiles.find(model.folder / "transformer", None)
    assert weights is not None
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in sorted(weights.files):
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(tuple(layers)):
            above, below = weights.shape(name)
            for side, shape in (("lora_A", (_RANK, below)), ("lora_B", (above, _RANK))):
                values = torch.randn(shape, generator=generator)
                tensors[f"transformer.{module}.{side}.weight"] = 0.3 * values
    assert tensors
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
