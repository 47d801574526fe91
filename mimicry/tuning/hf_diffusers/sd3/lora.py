"""The LoRA adapter of the transformer: put on, drawn, saved."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from mimicry.tuning.adapter import TARGET_MODULES, WEIGHTS, Adapter, lora_facts, publish
from mimicry.tuning.config import TuningConfig
from mimicry.tuning.hf_diffusers.sd3 import draws


def add_adapter(transformer: SD3Transformer2DModel, config: TuningConfig) -> dict[str, torch.nn.Parameter]:
    """Freeze the transformer, give it an adapter, and return the adapter's parameters by name.

    They are fp32 whatever the base is: in bf16, updates below 1/256 of a weight are lost. lora_A is drawn
    from a normal distribution of standard deviation 1 / rank, by name; lora_B is zero.
    """
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(**lora_facts(config.rank, TARGET_MODULES)))
    parameters = {name: value for name, value in transformer.named_parameters() if value.requires_grad}
    for name, parameter in parameters.items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            values = draws.normal(config.seed, "lora_A", 0, name, tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(values) / config.rank)
    return parameters


def save_adapter(
    transformer: SD3Transformer2DModel, output_dir: Path, config: TuningConfig, training_run: dict[str, Any]
) -> Adapter:
    """Save the adapter and publish it in `output_dir` (see `mimicry.tuning.adapter.publish`)."""
    dtype = torch.float32 if config.upcast_before_saving else torch.bfloat16
    layers = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in get_peft_model_state_dict(transformer).items()
    }
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=lora_facts(config.rank, TARGET_MODULES),
        )
        return publish(Path(folder) / WEIGHTS, output_dir, training_run, config.pretrained_model_name_or_path)
