"""Which class images a configuration asks for, and the settings that they are generated with. No torch."""

from pathlib import Path
from typing import Any

from mimicry.study.class_images import ClassImages
from mimicry.study.sample_files import DEFAULT_GUIDANCE, DEFAULT_STEPS
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig


def class_images_of(config: TuningConfig) -> ClassImages | None:
    """Return the class images that `config` asks for; None without prior preservation."""
    if config.class_data_dir is None:
        return None
    return ClassImages(Path(config.class_data_dir).absolute(), config.num_class_images)


def generation_settings(config: TuningConfig, model: BaseModel) -> dict[str, Any]:
    """Return everything that determines a generated image, except its index.

    How many are generated at a time may change its last bits, and is not compared.
    """
    return {
        "prompt": config.class_prompt,
        "max_sequence_length": config.max_sequence_length,
        "base_model": model.identity(),
        "variant": config.variant,
        "resolution": config.resolution,
        "quantize_base": config.quantize_base,
        "steps": DEFAULT_STEPS,
        "guidance": DEFAULT_GUIDANCE,
        "seed": config.seed,
        "precision": generation_precision(config),
    }


def generation_precision(config: TuningConfig) -> str:
    """Return the precision in which class images are generated: fp32, fp16 or bf16."""
    asked = config.prior_generation_precision or config.mixed_precision
    return "fp32" if asked == "no" else asked
