"""What a run leaves besides its weights: metrics.jsonl, training_run.json, and a line for each stage."""

import json
import math
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from mimicry.common.claims import Claim
from mimicry.common.errors import ClaimLost, MimicryError, TrainingFailed, disk_fault
from mimicry.common.files import canonical_json, sha256_text, utc_now, write_json
from mimicry.common.processes import Interrupted, stop_signals_held
from mimicry.common.tokens import scrub
from mimicry.study import State, described_images
from mimicry.tuning.adapters import OWN_TRAINER, Adapter, AdapterFolder
from mimicry.tuning.adapters.training_run import (
    LEFT_OUT,
    EvalLoss,
    Evaluation,
    Failure,
    LaterClassImages,
    Numerics,
    Progress,
    Published,
    Result,
    Section,
    Trained,
    joined,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.trainer_args import TrainerArgs
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint
from mimicry.tuning.hf_diffusers.training.data import TrainingData
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.kernels import cudnn_version
from mimicry.tuning.hf_diffusers.training.rng import Sample
from mimicry.tuning.hf_diffusers.training.runtime import Runtime
from mimicry.tuning.hf_diffusers.training.trackers import Reports
from mimicry.tuning.options.config import TuningConfig

# A loss is a spike when it is this many times the median of the losses before it, of which at most WINDOW
# and at least MINIMUM count: single losses differ by a factor of two or three with the timesteps drawn.
SPIKE_FACTOR = 5.0
SPIKE_WINDOW = 50
SPIKE_MINIMUM = 10


@dataclass
class History:
    """The losses of a run, its evaluation losses by step, and the hash of all draws, which is a chain."""

    samples_per_step: int
    losses: list[float] = field(default_factory=list)
    eval_losses: dict[int, float] = field(default_factory=dict)
    loss_spikes: list[dict[str, float]] = field(default_factory=list)
    draws_hash: str = ""
    _new_draws: list[list[Any]] = field(default_factory=list)

    def restore(self, metrics: bytes, facts: Mapping[str, Any]) -> None:
        """Become what it was when a checkpoint with these metrics and facts was written."""
        lines = [json.loads(line) for line in metrics.splitlines()]
        self.losses = [line["loss"] for line in lines if "loss" in line]
        self.eval_losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
        self.loss_spikes = list(facts["loss_spikes"])
        self.draws_hash = facts["draws"]

    def add_loss(self, step: int, loss: float) -> None:
        """Note the loss of a step that was taken; say it when it is far above those just before it."""
        before = self.losses[-SPIKE_WINDOW:]
        if len(before) >= SPIKE_MINIMUM and loss > SPIKE_FACTOR * median(before):
            self.loss_spikes.append({"step": step, "loss": loss})
            say(f"loss spike at step {step}: {loss:.4f}, where the median was {median(before):.4f}")
        self.losses.append(loss)
        end = len(self.losses) * self.samples_per_step
        taken = [facts for facts in self._new_draws if facts[0] < end]
        self._new_draws = [facts for facts in self._new_draws if facts[0] >= end]
        self.draws_hash = sha256_text(self.draws_hash + canonical_json(taken))

    def add_draw(self, sample: Sample, timestep_index: int) -> None:
        """Note a sample; it goes into the hash once its optimizer step was taken."""
        crop, kind = sample.crop, [sample.kind] if sample.kind else []
        drawn = [sample.index, sample.stem, crop.across, crop.down, crop.flipped, timestep_index, *kind]
        self._new_draws.append(drawn)


class StageClock:
    """Adds up the time of the stages of a run, by name; a stage within another one counts apart."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # Of the stages within the one that is being timed.
        self._within = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin, within_outer, self._within = time.monotonic(), self._within, 0.0
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._within
            self._within = within_outer + seconds


@dataclass(kw_only=True)
class RunRecord:
    """The record of one run; nothing is written before `resume.begin`, and by the main process alone.

    Attributes:
        claim: what lets us write into the folder; checked each time, since another process may have taken it.
        eval_loss: what is evaluated on, or why nothing is.
        generated: the class images, where this run had to wait for some of them.
        adapter: what was published, which no later error changes.
        earlier_seconds: what the processes before a resumption took, up to the checkpoint.
    """

    output_dir: Path
    config: TuningConfig
    trained: Trained
    numerics: Numerics
    runtime: Runtime
    claim: Claim | None = None
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=utc_now)
    stage: StageClock = field(default_factory=StageClock)
    eval_loss: EvalLoss = field(default_factory=EvalLoss)
    generated: LaterClassImages | None = None
    adapter: Adapter | None = None
    resumed: Checkpoint | None = None
    earlier_seconds: float = 0.0

    @cached_property
    def history(self) -> History:
        return History(self.config.samples_per_step)

    @cached_property
    def reports(self) -> Reports:
        return Reports(self.runtime.accelerator, self.warn)

    @cached_property
    def report_id(self) -> str:
        """The name of this run for trackers: that of the run that it resumes, or a new one."""
        new = sha256_text(f"{self.output_dir.absolute()} {self.started_at}")[:16]
        return new if self.resumed is None else str(self.resumed.facts.get("report_id", new))

    @property
    def folder(self) -> AdapterFolder:
        return AdapterFolder(self.output_dir)

    @property
    def writes(self) -> bool:
        return self.runtime.processes.is_main

    @property
    def steps(self) -> int:
        """The optimizer steps so far, those before a resumption included."""
        return len(self.history.losses)

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all processes that took part in it."""
        return round(self.earlier_seconds + time.monotonic() - self.started, 3)

    def warn(self, text: str) -> None:
        if text not in self.trained.warnings:
            self.trained.warnings.append(text)
            say(f"warning: {text}")

    def add_step(
        self, step: int, loss: float, learning_rate: float, grad_norm: float, seconds: float
    ) -> None:
        """Append a step's line to metrics.jsonl; a norm that is not finite, which fp16 skips, is null."""
        self.history.add_loss(step, loss)
        line = {
            "step": step,
            "loss": loss,
            "lr": learning_rate,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "seconds": round(seconds, 4),
            "peak_memory_bytes": self.runtime.peak_memory_bytes(),
        }
        self._append_metrics(line)

    def add_eval(self, step: int, loss: float) -> None:
        """Append the evaluation loss after optimizer step `step` to metrics.jsonl; 0 is the base model."""
        self.history.eval_losses[step] = loss
        self._append_metrics({"step": step, "eval_loss": loss})

    def _append_metrics(self, line: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        self.check_claim()
        with self.folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self.reports.add(line)

    def check_claim(self) -> None:
        """Raise ClaimLost where another process has taken the folder over."""
        if self.claim is not None:
            self.claim.check()

    def write(self, status: State, error: str | None = None) -> None:
        """Write training_run.json of a run in that state; `error` says why it ended."""
        if self.writes:
            self.check_claim()
            failure = [] if error is None else [Failure(error=error)]
            write_json(self.folder.record, joined(*_sections(self, status), *failure))

    def finished(self) -> dict[str, Any]:
        """Return the whole content of training_run.json for a run that reached its last step."""
        return joined(*_sections(self, State.COMPLETE), _result(self))

    def write_after_end(self) -> None:
        """Write the record of a published adapter anew, with later times and warnings, if it can be."""
        if self.adapter is None:
            return
        content = self.finished() | Published(weights=self.adapter.record()).content()
        with suppress(ClaimLost, OSError), nullcontext() if self.claim is None else self.claim.fenced():
            write_json(self.folder.record, content)


def _sections(record: RunRecord, status: State) -> list[Section]:
    progress = Progress(
        status=status,
        started_at=record.started_at,
        finished_at=None if status == State.RUNNING else utc_now(),
        seconds=record.seconds(),
        stage_seconds={name: round(seconds, 3) for name, seconds in record.stage.seconds.items()},
        steps=record.steps,
        resumed_from=None if record.resumed is None else record.resumed.step,
        earlier_seconds=record.earlier_seconds,
        loss_spikes=record.history.loss_spikes,
        peak_memory_bytes=record.runtime.peak_memory_bytes(),
    )
    known = [record.trained, record.numerics, *([] if record.generated is None else [record.generated])]
    return [*known, progress, Evaluation(eval_loss=_evaluated(record))]


def _evaluated(record: RunRecord) -> EvalLoss:
    if record.eval_loss.skipped is not LEFT_OUT:
        return record.eval_loss
    losses = record.history.eval_losses
    end = losses.get(record.config.step_count(len(record.trained.images)))
    return replace(record.eval_loss, start=losses.get(0), end=end)


def _result(record: RunRecord) -> Result:
    losses = record.history.losses
    return Result(final_loss=losses[-1], mean_loss=fmean(losses), draws_sha256=record.history.draws_hash)


@contextmanager
def recording_end(record: RunRecord) -> Iterator[None]:
    """Run the body; an error that ends it is written into the record."""
    try:
        yield
    except Interrupted as stop:
        _write(record, State.INTERRUPTED, f"stopped by {stop}")
        raise
    except ClaimLost:
        raise
    except MimicryError as error:
        _write(record, State.FAILED, str(error))
        raise
    except torch.OutOfMemoryError as error:
        message = (
            f"out of GPU memory: {str(error).splitlines()[0]}; leave --gradient-checkpointing, "
            f"--cache-latents and --conditioning-table on and --checkpointed-blocks out, or type a smaller "
            f"--resolution or --train-batch-size, or --quantize-base nf4"
        )
        _write(record, State.FAILED, message)
        raise TrainingFailed(message) from error
    except Exception as error:
        fault = disk_fault(error)
        _write(record, State.FAILED, fault or f"{type(error).__name__}: {error}".strip())
        if fault:
            raise TrainingFailed(fault) from error
        raise
    finally:
        record.reports.close()


def _write(record: RunRecord, state: State, error: str) -> None:
    if record.adapter is None:
        # The fault that ended the run may also prevent this; that fault is what is reported then.
        with stop_signals_held(), suppress(OSError):
            record.write(state, scrub(error))


def describe_training(
    args: TrainerArgs, model: BaseModel, data: TrainingData, runtime: Runtime
) -> tuple[Trained, Numerics]:
    """Return the parts of training_run.json that are known before training."""
    config, inputs = args.config, args.inputs
    trained = Trained.describe(
        config,
        model.identity(),
        model.folder,
        trainer=OWN_TRAINER,
        command=args.command,
        notes=inputs.notes,
    )
    trained.paths |= inputs.recorded_paths()
    trained.held_out = list(inputs.held_out(config.hold_out))
    pairing = inputs.read_pairing(config.hold_out)
    trained.images, trained.unpaired = described_images(pairing, data.captions, config.reading)
    if data.class_images is not None and not data.class_images.missing():
        trained.class_images = data.class_images.record()
    # No part of the numerics: kernels are compiled before they are shipped, and a driver only loads them.
    # Compared with sisters, it would stop a study each time that a cluster is updated.
    trained.versions["nvidia_driver"] = nvidia_driver() if runtime.device.type == "cuda" else None
    return trained, Numerics(numerics=_numerics(runtime, trained.versions))


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
