"""What a run is made from and runs on, for training_run.json."""

from collections.abc import Mapping
from typing import Any

import torch

from mimicry.study.image_sets import described_images
from mimicry.tuning.adapters.recipe import OWN_TRAINER
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.job import Job
from mimicry.tuning.hf_diffusers.run_description import describe_run
from mimicry.tuning.hf_diffusers.training.data import TrainingData
from mimicry.tuning.hf_diffusers.training.kernels import attention_names
from mimicry.tuning.options.config import TuningConfig


def describe_training(job: Job, model: BaseModel, data: TrainingData, device: torch.device) -> dict[str, Any]:
    """Return the part of training_run.json that is known before training."""
    facts = describe_run(job.config, model, trainer=OWN_TRAINER, command=job.command, notes=job.inputs.notes)
    facts["paths"] |= job.inputs.recorded_paths()
    facts["images"], facts["unpaired"] = described_images(
        job.inputs.read_pairing(), data.captions, convert_profiles=job.config.convert_profiles
    )
    # Class images that are still to be generated are added once they are there.
    if data.class_images is not None and not data.class_images.missing():
        facts["class_images"] = data.class_images.record()
    numerics = _numerics(job.config, device, facts["versions"])
    return facts | {"numerics": numerics, "memory": {}, "other_numerics": {}}


def _numerics(config: TuningConfig, device: torch.device, versions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may change the last bits of a result without being part of the recipe."""
    cuda = device.type == "cuda"
    libraries = ["diffusers", "transformers", "peft", "accelerate", "numpy", "pillow"]
    if config.quantize_base != "none" or config.use_8bit_adam:
        libraries.append("bitsandbytes")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "threads": None if cuda else torch.get_num_threads(),
        "cpu_capability": None if cuda else torch.backends.cpu.get_cpu_capability(),
        "attention_backend": ", ".join(attention_names(config, device)) or "default",
        "compile": config.compile_blocks,
        "quantisation": None if config.quantize_base == "none" else config.quantize_base,
        "deterministic": config.deterministic,
        "tf32": config.allow_tf32,
        "torch": torch.__version__,
        **{library: versions[library] for library in libraries},
    }
