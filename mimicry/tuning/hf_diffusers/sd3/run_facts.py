"""What a run is made from and runs on, for training_run.json."""

import os
import resource
from typing import Any

import torch

from mimicry.study.captions import image_records
from mimicry.tuning.adapters.recipe import OWN_TRAINER
from mimicry.tuning.hf_diffusers.run_description import describe_run
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.training.kernels import attention_names


def describe_setup(setup: Setup) -> dict[str, Any]:
    """Return the part of training_run.json that is known before training."""
    known = describe_run(
        setup.job.config,
        setup.model,
        trainer=OWN_TRAINER,
        command=setup.job.command,
        notes=setup.job.inputs.notes,
    )
    known["paths"] |= setup.job.inputs.recorded_paths()
    known["images"] = image_records(setup.images, setup.captions)
    # Class images that are still to be generated are added once they are there.
    if setup.class_images is not None and not setup.class_images.missing():
        known["class_images"] = setup.class_images.record()
    return known | {"numerics": _numerics(setup, known["versions"]), "memory": {}, "other_numerics": {}}


def _numerics(setup: Setup, versions: dict[str, Any]) -> dict[str, Any]:
    """Return what may change the last bits of a result without being part of the recipe."""
    config, cuda = setup.job.config, setup.device.type == "cuda"
    libraries = ["diffusers", "transformers", "peft", "accelerate", "numpy", "pillow"]
    if config.quantize_base != "none" or config.use_8bit_adam:
        libraries.append("bitsandbytes")
    return {
        "device": torch.cuda.get_device_name(setup.device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "threads": None if cuda else torch.get_num_threads(),
        "cpu_capability": None if cuda else torch.backends.cpu.get_cpu_capability(),
        "attention_backend": ", ".join(attention_names(config, setup.device)) or "default",
        "compile": config.compile_blocks,
        "quantisation": None if config.quantize_base == "none" else config.quantize_base,
        "deterministic": config.deterministic,
        "tf32": config.allow_tf32,
        "torch": torch.__version__,
        **{library: versions[library] for library in libraries},
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak so far: of the GPU's memory when there is one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if os.uname().sysname == "Darwin" else peak * 1024)
