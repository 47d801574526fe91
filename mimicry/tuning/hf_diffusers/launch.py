"""The command that starts a trainer, ours or a copy of the diffusers example."""

import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.environment import processor_count, typed_threads
from mimicry.common.errors import UsageError
from mimicry.tuning.adapters.recipe import trainer_identity
from mimicry.tuning.options.config import REPORT_NONE, TuningConfig
from mimicry.tuning.options.flags import TRAINER_OPTIONS, TrainingInputs, trainer_flags

_FOLDER = Path(__file__).resolve().parent
OWN_SCRIPT = _FOLDER / "train_dreambooth_lora_sd3.py"
_LAUNCHER = _FOLDER / "accelerate_launcher.py"
_ACCELERATE_CONFIG = _FOLDER / "accelerate_config.yaml"
# What another script saves lies in a folder that no later run of it is given.
_NOT_FOR_OTHERS = frozenset({"resume_from_checkpoint"})


@dataclass(frozen=True)
class TrainScript:
    """A training script: where it lies, and which flags it knows (None: all of ours)."""

    path: Path
    known_flags: frozenset[str] | None = None

    @property
    def is_own(self) -> bool:
        return self.known_flags is None

    @property
    def identity(self) -> str:
        """What tells this trainer from others in a recipe."""
        return trainer_identity(None if self.is_own else self.path)

    @classmethod
    def own(cls) -> "TrainScript":
        return cls(OWN_SCRIPT)

    @classmethod
    def read(cls, path: Path) -> "TrainScript":
        """Read the flags of a script with the diffusers example's command line, without running it.

        Raises:
            UsageError: it cannot be read or parsed, or lacks the flags that no training does without.
        """
        try:
            tree = ast.parse(path.read_text("utf-8"), filename=str(path))
        except (OSError, ValueError, SyntaxError) as error:
            raise UsageError(f"--train-script {path} cannot be read as Python: {error}") from error
        known = frozenset(_declared_flags(tree))
        missing = [
            name for name in ("instance_data_dir", "output_dir", "instance_prompt") if name not in known
        ]
        if missing:
            raise UsageError(
                f"--train-script {path} knows no --{', --'.join(missing)}; it takes a script with the "
                f"command line of diffusers' train_dreambooth_lora_sd3.py"
            )
        return cls(path.resolve(), known - _NOT_FOR_OTHERS)

    def words(self, config: TuningConfig, inputs: TrainingInputs) -> list[str]:
        """Return the script's arguments; a flag that it does not know is left out."""
        given = inputs.trainer_flags()
        left_out = given.pop("leave_out")
        flags = {**given, **trainer_flags(config), "leave_out": left_out}
        if not self.is_own and config.report_to == REPORT_NONE:
            flags["report_to"] = []  # accelerate, which the diffusers example asks, does not know the word
        return [word for name, words in flags.items() if self._knows(name) for word in words]

    def warnings(self, config: TuningConfig) -> list[str]:
        """Return what goes wrong, or gets lost, when this script trains with `config`."""
        if self.is_own:
            return []
        dropped = [
            option.flag
            for option in TRAINER_OPTIONS
            if not self._knows(option.name) and getattr(config, option.name) != option.default
        ]
        found = [f"{self.path.name} does not know {flag}, which is left out" for flag in dropped]
        if config.cache_latents and config.mixed_precision != "no" and self._knows("cache_latents"):
            found.append(
                f"{self.path.name} may fail with cached latents in {config.mixed_precision}, as the "
                f"diffusers example does; if so, type --no-cache-latents"
            )
        return found

    def _knows(self, name: str) -> bool:
        return self.known_flags is None or name in self.known_flags


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


def _declared_flags(tree: ast.AST) -> list[str]:
    """Return the names of all long flags that the calls of `add_argument` in `tree` declare."""
    names = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or getattr(node.func, "attr", None) != "add_argument":
            continue
        for argument in node.args:
            if isinstance(argument, ast.Constant) and str(argument.value).startswith("--"):
                names.append(str(argument.value)[2:].replace("-", "_"))
    return names
