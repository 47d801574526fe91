"""A stand-in for the wrapper: it trains at once, and goes on from checkpoints as our trainer does.

What does not fit is set aside with its checkpoints, so that a test can see which steps were lost. It is
started by its path, in a stack of the tests; see `tests.agreement.study`.
"""

import json
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mimicry.common.files import set_aside, utc_now
from mimicry.common.processes import run_command
from mimicry.study.captions import image_records, record_differences
from mimicry.tuning.adapters.checkpoint_facts import CheckpointFacts, choose_checkpoint
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe, recipe_hash
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT, TARGET_MODULES
from mimicry.tuning.options.click_options import handed_on_options, hyper_parameter_options, take_config
from mimicry.tuning.options.flags import TrainingInputs, input_options


@click.command()
@input_options
@click.option("--hub-model-id")
@handed_on_options
@hyper_parameter_options
def train(**parameters: Any) -> int:
    """Train one artist."""
    inputs = TrainingInputs.take(parameters)
    config = take_config(parameters)
    model = BaseModel.find(config)
    assert model is not None
    used = recipe(config, model.identity(), OWN_TRAINER)
    captions = inputs.read_captions(config.hold_out) if config.captions else None
    images = image_records(inputs.read_images(config.hold_out), captions, hashed=True)
    folder = AdapterFolder(inputs.output_dir, ADAPTER_FORMAT)

    def other_run(checkpoint: CheckpointFacts) -> str:
        return checkpoint.other_run(used, record_differences(checkpoint.facts["images"], images))

    found, unused = choose_checkpoint(folder, config.resume_from_checkpoint, CheckpointFacts.read, other_run)
    if unused:
        set_aside(folder.path, list(unused), "unused")
    record = {
        "recipe": used,
        "recipe_hash": recipe_hash(used),
        "options": asdict(config) | {"pretrained_model_name_or_path": None, "class_data_dir": None},
        "paths": {
            **inputs.recorded_paths(),
            "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        },
        "images": images,
        "status": "complete",
        "finished_at": utc_now(),
        "steps": config.step_count(len(images)),
        "resumed_from": None if found is None else found.step,
    }
    saved = folder.path / "saved.safetensors"
    saved.write_bytes(weights(config.rank, config.seed))
    folder.publish(saved, record, config.pretrained_model_name_or_path)
    saved.unlink()
    folder.remove(folder.spent_checkpoints())
    return 0


def weights(rank: int, value: float) -> bytes:
    """Return the file of a LoRA of `rank` of two blocks, whose numbers depend on `value`."""
    header, data = {}, b""
    for block in range(2):
        for name in TARGET_MODULES:
            for side, shape in (("A", [rank, 6]), ("B", [8, rank])):
                numbers = [1.0 + value] * (shape[0] * shape[1])
                begin, data = len(data), data + struct.pack(f"<{len(numbers)}f", *numbers)
                module = f"transformer.transformer_blocks.{block}.{name}"
                header[f"{module}.lora_{side}.weight"] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [begin, len(data)],
                }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(run_command(train, [f"--input-dir={words[0]}", f"--output-dir={Path(words[1])}", *words[2:]]))
