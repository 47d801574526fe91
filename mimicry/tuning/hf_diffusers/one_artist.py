"""Training one artist through accelerate: launch, watch, verify."""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mimicry.common.children import Interrupted, has_parent, running_child
from mimicry.common.claims import Claim
from mimicry.common.errors import AdapterBroken, TrainingFailed, disk_fault
from mimicry.common.files import set_aside, utc_now
from mimicry.common.scrubbing import mask_token
from mimicry.common.text import shell_line
from mimicry.study.image_checks import refuse_changed_images
from mimicry.study.images import ImageRecord
from mimicry.study.states import State
from mimicry.tuning.adapters.folder import WEIGHTS, AdapterFolder
from mimicry.tuning.execution.attempt import Attempt
from mimicry.tuning.execution.supervision import MetricsReader, StallGuard, follow
from mimicry.tuning.hf_diffusers.adapter_format import ADAPTER_FORMAT
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.class_settings import class_images_of
from mimicry.tuning.hf_diffusers.launch import TrainScript, launch_words
from mimicry.tuning.hf_diffusers.run_description import describe_run
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.inputs import TrainingInputs
from mimicry.tuning.progress import StepDisplay, is_terminal

# The trainer finishes what it does within ten seconds of a stop signal.
_GRACE_SECONDS = 15.0
_SHOWN_LOG_LINES = 20
_FOREIGN_OUTPUT = ".training"


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
        return folder if self.script.is_own else folder / _FOREIGN_OUTPUT

    @property
    def step_count(self) -> int:
        """The optimizer steps of the training."""
        return self.config.step_count(len(self.inputs.read_images().names))

    def command(self) -> list[str]:
        """Return the exact command that trains this artist."""
        config = self.config
        if not self.script.is_own:
            # In the diffusers example the number of steps goes before that of epochs.
            config = replace(config, max_train_steps=self.step_count, num_train_epochs=None)
        inputs = replace(self.inputs, output_dir=self.trainer_output_dir)
        words = self.script.words(config, inputs)
        return launch_words(self.script, words, self.config)


def train_artist(job: ArtistJob, claim: Claim | None = None) -> None:
    """Train the artist; when this returns, a verified adapter lies in the output folder.

    Args:
        claim: that of the output folder, which the trainer joins.

    Raises:
        TrainingFailed: there is none; the message says why and where the log is.
        Interrupted: somebody has sent a stop signal to the trainer.
        ClaimLost: another process has taken the folder over.
    """
    attempt = Attempt.begin(job.folder)
    # What a script that was stopped has left must not be taken for the result of this one.
    # A checkpoint of our own trainer is for itself to judge.
    others = [] if job.script.is_own else job.folder.checkpoint_names()
    set_aside(job.inputs.output_dir, [_FOREIGN_OUTPUT, *others], "unfinished")
    started_at = utc_now()
    images = [] if job.script.is_own else job.inputs.read_images().records()
    try:
        code = _run(job, {} if claim is None else claim.variable())
        if not job.script.is_own:
            with nullcontext() if claim is None else claim.fenced():
                _publish_foreign(job, started_at, images)
    except AdapterBroken as error:
        raise TrainingFailed(*error.problems) from error
    except OSError as error:
        raise TrainingFailed(disk_fault(error) or f"{job.inputs.output_dir}: {error.strerror}") from error
    if claim is not None:
        claim.check()
    failure = attempt.failure(code)
    stopped_by = attempt.stopped_by()
    if failure is not None and stopped_by is not None:
        raise Interrupted(stopped_by)
    if failure is not None:
        raise TrainingFailed(failure + _log_excerpt(job, attempt))


def _run(job: ArtistJob, variable: Mapping[str, str]) -> int:
    log = job.folder.log
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", **variable}
    with ExitStack() as stack:
        stack.callback(mask_token, log)
        output = stack.enter_context(log.open("ab"))
        command = job.command()
        output.write(f"--- {utc_now()} {shell_line(command)}\n".encode("utf-8", "replace"))
        output.flush()
        metrics = MetricsReader(AdapterFolder(job.trainer_output_dir).metrics)
        child = stack.enter_context(
            running_child(command, output=output, environment=environment, grace_seconds=_GRACE_SECONDS)
        )
        # Under apply_tuning there is no terminal here, and it shows the steps itself.
        display = StepDisplay(job.inputs.output_dir.name, job.step_count) if is_terminal() else None
        if display is not None:
            stack.callback(display.close)
        # Only our own trainer writes metrics.jsonl as it goes.
        guard = StallGuard(log, job.stall_seconds) if job.script.is_own else None
        return follow(child, metrics, display.step if display else _ignore, guard)


def _publish_foreign(job: ArtistJob, started_at: str, images: list[ImageRecord]) -> None:
    """Move what somebody else's script has saved to its final place, with the records that it lacks.

    Our own trainer looks by itself whether its images are still those that it began with.
    """
    saved = job.trainer_output_dir / WEIGHTS
    if not saved.exists():
        return
    refuse_changed_images(job.inputs.read_images(), images)
    record = describe_run(
        job.config,
        BaseModel.resolve(job.config),
        trainer=job.script.identity,
        command=job.command(),
        notes=(*job.inputs.notes, *job.script.warnings(job.config)),
    )
    record["paths"] |= {
        "instance_data_dir": str(job.inputs.input_dir),
        "output_dir": str(job.inputs.output_dir),
    }
    record |= {
        "images": images,
        "status": State.COMPLETE,
        "started_at": started_at,
        "finished_at": utc_now(),
        "steps": job.step_count,
        "eval_loss": {"skipped": f"{job.script.path.name} makes no evaluation"},
    }
    class_images = class_images_of(job.config)
    if class_images is not None and not class_images.missing():
        record["class_images"] = class_images.record()
    job.folder.publish(saved, record, job.config.pretrained_model_name_or_path)
    shutil.rmtree(job.trainer_output_dir)


def _log_excerpt(job: ArtistJob, attempt: Attempt) -> str:
    if has_parent():  # which shows them itself, and whose log this goes to
        return ""
    lines = [f"  | {line}" for line in attempt.log_lines(_SHOWN_LOG_LINES)]
    return "\n".join(["", f"  the last lines of {job.folder.log}:", *lines])


def _ignore(line: object) -> None:
    """Take no notice of a step."""
