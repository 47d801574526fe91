"""adapter_config.json, which peft reads: it follows from the weights and from the training's options."""

from collections.abc import Mapping, Sequence
from typing import Any

from mimicry.tuning.adapters.format import AdapterFormat


def lora_arguments(rank: int, target_modules: Sequence[str], dropout: float = 0.0) -> dict[str, Any]:
    """Return the arguments of peft's LoraConfig that our adapters are made with.

    They stand in adapter_config.json and in the header of the weights: few, so that every version of peft
    understands them, and in a fixed order, so that the same adapter is the same bytes.
    """
    return {
        "bias": "none",
        "init_lora_weights": "gaussian",
        "lora_alpha": rank,
        "lora_dropout": dropout,
        "r": rank,
        "target_modules": sorted(target_modules),
    }


LORA_ARGUMENTS = tuple(lora_arguments(0, ()))


def peft_config(
    form: AdapterFormat,
    *,
    rank: int,
    modules: Sequence[str],
    base_model: str | None,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of adapter_config.json for an adapter of this rank on these modules.

    Args:
        options: those that it was trained with, as far as they are known.
    """
    options = options or {}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        **lora_arguments(rank, form.target_modules(modules, options), options.get("lora_dropout", 0.0)),
    }
