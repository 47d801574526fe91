"""What a run is made from and runs on, for training_run.json."""

import subprocess
from collections.abc import Mapping
from typing import Any

import torch

from mimicry.study.image_sets import described_images
from mimicry.tuning.adapters.recipe import OWN_TRAINER
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.run_description import describe_run
from mimicry.tuning.hf_diffusers.trainer_args import TrainerArgs
from mimicry.tuning.hf_diffusers.training.data import TrainingData
from mimicry.tuning.hf_diffusers.training.kernels import cudnn_version
from mimicry.tuning.hf_diffusers.training.runtime import Runtime


def describe_training(
    args: TrainerArgs, model: BaseModel, data: TrainingData, runtime: Runtime
) -> dict[str, Any]:
    """Return the part of training_run.json that is known before training."""
    facts = describe_run(
        args.config, model, trainer=OWN_TRAINER, command=args.command, notes=args.inputs.notes
    )
    facts["paths"] |= args.inputs.recorded_paths()
    facts["held_out"] = list(args.inputs.held_out(args.config.hold_out))
    facts["images"], facts["unpaired"] = described_images(
        args.inputs.read_pairing(args.config.hold_out), data.captions, args.config.reading
    )
    # Class images that are still to be generated are added once they are there.
    if data.class_images is not None and not data.class_images.missing():
        facts["class_images"] = data.class_images.record()
    # No part of the numerics: kernels are compiled before they are shipped, and a driver only loads them.
    # Compared with sisters, it would stop a study each time that a cluster is updated.
    facts["versions"]["nvidia_driver"] = nvidia_driver() if runtime.device.type == "cuda" else None
    numerics = _numerics(runtime, facts["versions"])
    return facts | {"numerics": numerics, "memory": {}, "other_numerics": {}}


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver, which torch does not know; None where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # A line for each GPU.
    return done.stdout.partition("\n")[0].strip() or None


def _numerics(runtime: Runtime, versions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may change the last bits of a result without being part of the recipe."""
    config, device = runtime.config, runtime.device
    cuda = device.type == "cuda"
    libraries = ["diffusers", "transformers", "peft", "accelerate", "numpy", "pillow"]
    if config.quantize_base != "none" or config.use_8bit_adam:
        libraries.append("bitsandbytes")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "hip": torch.version.hip if cuda else None,
        "cudnn": cudnn_version() if cuda else None,
        "threads": None if cuda else torch.get_num_threads(),
        "cpu_capability": None if cuda else torch.backends.cpu.get_cpu_capability(),
        "attention_backend": ", ".join(runtime.attention_choice.names) or "default",
        "compile": config.compile_blocks,
        "quantisation": None if config.quantize_base == "none" else config.quantize_base,
        "deterministic": config.deterministic,
        "tf32": config.allow_tf32,
        "torch": torch.__version__,
        **{library: versions[library] for library in libraries},
    }
