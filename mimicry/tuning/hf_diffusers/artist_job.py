"""One artist to train, and the command that does it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from mimicry.common.environment import without_launcher
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.hf_diffusers.launch import TrainScript, launch_words
from mimicry.tuning.hf_diffusers.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.options import TrainingInputs, TuningConfig

FOREIGN_OUTPUT = ".training"


@dataclass(frozen=True, kw_only=True)
class ArtistJob:
    """One artist to train: hyper-parameters, inputs, script, and when a training counts as stalled."""

    config: TuningConfig
    inputs: TrainingInputs
    script: TrainScript
    stall_seconds: float

    @property
    def folder(self) -> AdapterFolder:
        return AdapterFolder(self.inputs.output_dir, ADAPTER_FORMAT)

    @property
    def trainer_output_dir(self) -> Path:
        """Where the script writes: a foreign one beside the final place, since it may stop half way."""
        folder = self.inputs.output_dir
        return folder if self.script.is_own else folder / FOREIGN_OUTPUT

    @property
    def step_count(self) -> int:
        """The optimizer steps of the training."""
        return self.config.step_count(len(self.inputs.read_images(self.config.hold_out).names))

    def environment(self) -> tuple[dict[str, str], str]:
        """Return the script's environment, and a line that says what of ours it lacks; empty for nothing."""
        around, removed = without_launcher(os.environ)
        return around | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}, removed

    def command(self) -> list[str]:
        """Return the exact command that trains this artist."""
        config = self.config
        if not self.script.is_own:
            # In the diffusers example the number of steps goes before that of epochs.
            config = replace(config, max_train_steps=self.step_count, num_train_epochs=None)
        inputs = replace(self.inputs, output_dir=self.trainer_output_dir)
        words = self.script.words(config, inputs)
        return launch_words(self.script, words, self.config)
