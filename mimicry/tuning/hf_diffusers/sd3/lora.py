"""The LoRA adapter of the transformer: put on, drawn, saved."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from mimicry.tuning.adapters import WEIGHTS, Adapter, AdapterFolder, lora_arguments
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import (
    ADAPTER_FORMAT,
    TARGET_MODULES,
    choose_modules,
    chooses_modules,
)
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.fused_layers import use_fused_lora
from mimicry.tuning.options.config import TuningConfig


def check_modules(model: BaseModel, config: TuningConfig) -> None:
    """Refuse layers and blocks that the model does not have, as `chosen_modules`; reads no weights."""
    if chooses_modules(config.lora_layers, config.lora_blocks):
        with init_empty_weights():
            chosen_modules(SD3Transformer2DModel.from_config(model.config_of("transformer")), config)


def chosen_modules(transformer: SD3Transformer2DModel, config: TuningConfig) -> list[str]:
    """Return the full names of the modules that `config` asks for; see `choose_modules`."""
    known = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    return choose_modules(known, len(transformer.transformer_blocks), config)


def add_adapter(transformer: SD3Transformer2DModel, config: TuningConfig) -> dict[str, torch.nn.Parameter]:
    """Freeze the transformer, give it an adapter, and return the adapter's parameters by name.

    They are always fp32: in bf16, updates below 1/256 of a weight are lost. lora_A is drawn from a normal
    distribution of standard deviation 1 / rank, by name; lora_B is zero.

    Raises:
        UsageError: see `choose_modules`.
    """
    transformer.requires_grad_(False)
    chooses = chooses_modules(config.lora_layers, config.lora_blocks)
    targets = chosen_modules(transformer, config) if chooses else TARGET_MODULES
    transformer.add_adapter(LoraConfig(**lora_arguments(config.rank, targets, config.lora_dropout)))
    parameters = {name: value for name, value in transformer.named_parameters() if value.requires_grad}
    for name, parameter in parameters.items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            values = rng.normal(config.seed, "lora_A", 0, name, tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(values) / config.rank)
    use_fused_lora(transformer)
    return parameters


def save_adapter(
    transformer: SD3Transformer2DModel, output_dir: Path, config: TuningConfig, training_run: dict[str, Any]
) -> Adapter:
    """Save the adapter and publish it in `output_dir` (see `AdapterFolder.publish`)."""
    dtype = torch.float32 if config.upcast_before_saving else torch.bfloat16
    layers = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in get_peft_model_state_dict(transformer).items()
    }
    targets: Sequence[str] = TARGET_MODULES
    if chooses_modules(config.lora_layers, config.lora_blocks):
        targets = sorted({name.partition(".lora_")[0] for name in layers})
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=lora_arguments(config.rank, targets, config.lora_dropout),
        )
        adapter = AdapterFolder(output_dir, ADAPTER_FORMAT)
        return adapter.publish(Path(folder) / WEIGHTS, training_run, config.pretrained_model_name_or_path)
