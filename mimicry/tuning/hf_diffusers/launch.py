"""The command that starts a trainer: accelerate, the script, its arguments."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.environment import processor_count, typed_threads
from mimicry.tuning.adapters.recipe import OWN_TRAINER
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TrainingInputs, trainer_flags

_FOLDER = Path(__file__).resolve().parent
OWN_SCRIPT = _FOLDER / "train_dreambooth_lora_sd3.py"
_LAUNCHER = _FOLDER / "accelerate_launcher.py"
_ACCELERATE_CONFIG = _FOLDER / "accelerate_config.yaml"


@dataclass(frozen=True)
class TrainScript:
    """A training script: ours, which takes all flags and keeps its own records."""

    path: Path = OWN_SCRIPT

    @property
    def is_own(self) -> bool:
        return True

    @property
    def identity(self) -> str:
        """The name of this trainer in a recipe."""
        return OWN_TRAINER

    def output_dir(self, folder: Path) -> Path:
        """Return where the script writes while it trains the adapter of `folder`."""
        return folder

    def flags(self, config: TuningConfig, inputs: TrainingInputs) -> dict[str, list[str]]:
        """Return the words for each flag, by its name."""
        given = inputs.trainer_flags()
        left_out = given.pop("leave_out")
        return {**given, **trainer_flags(config), "leave_out": left_out}

    def words(self, config: TuningConfig, inputs: TrainingInputs) -> list[str]:
        """Return the script's arguments."""
        return [word for words in self.flags(config, inputs).values() for word in words]

    def warnings(self, config: TuningConfig) -> list[str]:
        """Return what goes wrong, or gets lost, when this script trains with `config`."""
        return []


def step_count(config: TuningConfig, inputs: TrainingInputs) -> int:
    """Return the optimizer steps of a training."""
    return config.step_count(len(inputs.read_images(config.hold_out).names))


def launch_words(script: TrainScript, script_words: Sequence[str], config: TuningConfig) -> list[str]:
    """Return the whole command: accelerate with every choice made, then the script and its arguments."""
    return [
        sys.executable,
        str(_LAUNCHER),
        "--quiet",  # without a traceback of its own under that of a script that failed
        f"--config_file={_ACCELERATE_CONFIG}",
        # The launcher needs it for several processes, on the CPU too; any free port will do.
        *(["--multi_gpu", "--main_process_port=0"] if config.num_processes > 1 else []),
        f"--num_processes={config.num_processes}",
        "--num_machines=1",
        "--dynamo_backend=no",
        f"--mixed_precision={config.mixed_precision}",
        f"--num_cpu_threads_per_process={cpu_threads(config.num_processes)}",
        str(script.path),
        *script_words,
    ]


def cpu_threads(process_count: int = 1) -> int:
    """Return OMP_NUM_THREADS when it is set, else a process's share of the processors that we may use."""
    return typed_threads(os.environ) or max(1, processor_count() // process_count)
