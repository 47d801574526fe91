"""Small LoRA files for the tests of this room."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mimicry.study.images import ImageFolder
from mimicry.tuning import planning
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.judge import AdapterSpec, AdapterState, judge_adapter
from mimicry.tuning.adapters.weights import Adapter
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT, TARGET_MODULES
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import StackTraits

MODULES = tuple(f"transformer_blocks.{block}.{name}" for block in range(2) for name in TARGET_MODULES)


def lora_tensors(
    rank: int = 4, *, modules: tuple[str, ...] = MODULES, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return the weights of a trained LoRA: A is rank x 6, B is 8 x rank."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        tensors[f"transformer.{module}.lora_A.weight"] = torch.randn(rank, 6, generator=generator).to(dtype)
        tensors[f"transformer.{module}.lora_B.weight"] = torch.randn(8, rank, generator=generator).to(dtype)
    return tensors


def save_lora(path: Path, rank: int = 4, **changes: Any) -> Path:
    """Save the weights of a trained LoRA of `rank`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora_tensors(rank, **changes), path, metadata={"format": "pt"})
    return path


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    """Return a file with that header, which may be JSON or bytes, and those data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def files_in(folder: Path) -> Mapping[str, bytes]:
    """Return the content of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_adapter(output_dir: Path, rank: int | None) -> Adapter:
    """Check the adapter of our own stack in `output_dir` in full."""
    return AdapterFolder(output_dir, ADAPTER_FORMAT).check(rank)


def checkpoint_names(output_dir: Path) -> list[str]:
    return AdapterFolder(output_dir).checkpoint_names()


def judge(output_dir: Path, spec: AdapterSpec, images: ImageFolder, **how: Any) -> AdapterState:
    """Judge what lies in `output_dir`, by the format of our own stack."""
    return judge_adapter(AdapterFolder(output_dir, ADAPTER_FORMAT), spec, images, **how)


def adapter_spec(config: TuningConfig, trainer: str) -> AdapterSpec:
    """Return what `config` asks of an adapter of our own stack."""
    return TRAITS.adapter_spec(config, trainer)


def batch_problems(
    config: TuningConfig | None, output_root: Path, count: int, *, uploads: bool, network: bool = True
) -> list[str]:
    """Return what forbids training by our own stack; None stands for a stack that takes no options."""
    traits = StackTraits(hub_prefix="other") if config is None else TRAITS
    problems = traits.problems(config, network=network)
    return planning.batch_problems(
        problems, output_root, count, traits.disk_bytes(config, count), uploads=uploads
    )
