"""The training script, ours or one for --train-script, and the command that starts it.

Another script keeps no records, knows some of our flags only, and may stop half way. So it writes into a
folder of its own, and what it has saved is published from there.
"""

import ast
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimicry.common.environment import processor_count, typed_threads
from mimicry.common.errors import UsageError
from mimicry.common.files import utc_now
from mimicry.study import ImageRecord, State
from mimicry.study.image_checks import refuse_changed_images
from mimicry.study.image_sets import described_images
from mimicry.tuning.adapters import WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.recipe import OWN_TRAINER, trainer_identity
from mimicry.tuning.adapters.training_run import (
    EvalLoss,
    Evaluation,
    LaterClassImages,
    Progress,
    Section,
    Trained,
    joined,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.preflight import class_images_of
from mimicry.tuning.options.config import REPORT_NONE, TuningConfig
from mimicry.tuning.options.flags import TRAINER_OPTIONS, TrainingInputs, trainer_flags

_FOLDER = Path(__file__).resolve().parent
OWN_SCRIPT = _FOLDER / "train_dreambooth_lora_sd3.py"
_LAUNCHER = _FOLDER / "accelerate_launcher.py"
_ACCELERATE_CONFIG = _FOLDER / "accelerate_config.yaml"

FOREIGN_OUTPUT = ".training"
_NEEDED_FLAGS = ("instance_data_dir", "output_dir", "instance_prompt")
# What another script saves lies in a folder that no later run of it is given.
_NOT_FOR_OTHERS = frozenset({"resume_from_checkpoint"})


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
        given = inputs.trainer_flags()
        left_out = given.pop("leave_out")
        return {**given, **trainer_flags(config), "leave_out": left_out}

    def words(self, config: TuningConfig, inputs: TrainingInputs) -> list[str]:
        return [word for words in self.flags(config, inputs).values() for word in words]

    def warnings(self, config: TuningConfig) -> list[str]:
        """Return what goes wrong, or gets lost, when this script trains with `config`."""
        return []


def step_count(config: TuningConfig, inputs: TrainingInputs) -> int:
    return config.step_count(len(inputs.read_images(config.hold_out).names))


@dataclass(frozen=True)
class ForeignScript(TrainScript):
    """Somebody else's training script, with those of our flags that it knows."""

    known_flags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path) -> "ForeignScript":
        """Read a script's flags without running it; raises UsageError where it is no use."""
        try:
            tree = ast.parse(path.read_text("utf-8"), filename=str(path))
        except (OSError, ValueError, SyntaxError) as error:
            raise UsageError(f"--train-script {path} cannot be read as Python: {error}") from error
        known = frozenset(_declared_flags(tree))
        missing = [name for name in _NEEDED_FLAGS if name not in known]
        if missing:
            raise UsageError(
                f"--train-script {path} knows no --{', --'.join(missing)}; it takes a script with the "
                f"command line of diffusers' train_dreambooth_lora_sd3.py"
            )
        return cls(path.resolve(), known - _NOT_FOR_OTHERS)

    @property
    def is_own(self) -> bool:
        return False

    @property
    def identity(self) -> str:
        return trainer_identity(self.path)

    def output_dir(self, folder: Path) -> Path:
        return folder / FOREIGN_OUTPUT

    def flags(self, config: TuningConfig, inputs: TrainingInputs) -> dict[str, list[str]]:
        if config.num_train_epochs is not None:
            # In the diffusers example the number of steps goes before that of epochs.
            config = replace(config, max_train_steps=step_count(config, inputs), num_train_epochs=None)
        flags = super().flags(config, inputs)
        if config.report_to == REPORT_NONE:
            flags["report_to"] = []  # accelerate, which the diffusers example asks, does not know the word
        return {name: words for name, words in flags.items() if name in self.known_flags}

    def warnings(self, config: TuningConfig) -> list[str]:
        warnings = [
            f"{self.path.name} does not know {option.flag}, which is left out"
            for option in TRAINER_OPTIONS
            if option.name not in self.known_flags and getattr(config, option.name) != option.default
        ]
        if config.cache_latents and config.mixed_precision != "no" and "cache_latents" in self.known_flags:
            warnings.append(
                f"{self.path.name} may fail with cached latents in {config.mixed_precision}, as the "
                f"diffusers example does; if so, type --no-cache-latents"
            )
        return warnings


def _declared_flags(tree: ast.AST) -> list[str]:
    return [
        str(argument.value)[2:].replace("-", "_")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "add_argument"
        for argument in node.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("--")
    ]


@dataclass(frozen=True)
class ForeignTraining:
    """What is known of a training by such a script before it begins."""

    script: TrainScript
    config: TuningConfig
    inputs: TrainingInputs
    images: Sequence[ImageRecord]
    started_at: str

    @classmethod
    def begin(cls, script: TrainScript, config: TuningConfig, inputs: TrainingInputs) -> "ForeignTraining":
        images = inputs.read_images(config.hold_out).records()
        return cls(script, config, inputs, images, utc_now())

    def publish(self, folder: AdapterFolder, command: Sequence[str]) -> None:
        """Move the weights that the script has saved to their final place, with the records that they lack.

        Raises:
            TrainingFailed: the images were changed meanwhile.
            AdapterBroken: the weights are not what was asked for.
        """
        output_dir = self.script.output_dir(folder.path)
        if not (output_dir / WEIGHTS).exists():
            return
        refuse_changed_images(self.inputs.read_images(self.config.hold_out), self.images)
        content = joined(*self._sections(command))
        folder.publish(output_dir / WEIGHTS, content, self.config.pretrained_model_name_or_path)
        shutil.rmtree(output_dir)

    def _sections(self, command: Sequence[str]) -> list[Section]:
        config, inputs, model = self.config, self.inputs, BaseModel.resolve(self.config)
        trained = Trained.describe(
            config,
            model.identity(),
            model.folder,
            trainer=self.script.identity,
            command=command,
            notes=(*inputs.notes, *self.script.warnings(config)),
        )
        trained.paths |= {"instance_data_dir": str(inputs.input_dir), "output_dir": str(inputs.output_dir)}
        trained.images, trained.unpaired = described_images(
            inputs.read_pairing(config.hold_out), None, config.reading
        )
        progress = Progress(
            status=State.COMPLETE,
            started_at=self.started_at,
            finished_at=utc_now(),
            steps=step_count(config, inputs),
        )
        skipped = EvalLoss(skipped=f"{self.script.path.name} makes no evaluation")
        sections = [trained, progress, Evaluation(eval_loss=skipped)]
        if (class_images := class_images_of(config)) is not None and not class_images.missing():
            sections.append(LaterClassImages(class_images=class_images.record()))
        return sections


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
