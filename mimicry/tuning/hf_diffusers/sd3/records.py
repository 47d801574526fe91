"""What a run leaves beside its weights: metrics.jsonl, training_run.json, and a line for each stage."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mimicry.common.children import Interrupted, stop_signals_held
from mimicry.common.claims import Claim
from mimicry.common.environment import process_index
from mimicry.common.errors import ClaimLost, MimicryError, TrainingFailed, disk_fault
from mimicry.common.files import canonical_json, set_aside, sha256_text, utc_now, write_bytes, write_json
from mimicry.common.scrubbing import scrub
from mimicry.common.text import printable
from mimicry.study.images import ImageRecord
from mimicry.study.states import State
from mimicry.tuning.adapters.folder import METRICS, SAMPLES, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.numerics import describe_differences, numerics_differences, sister_differences
from mimicry.tuning.hf_diffusers.sd3.job import Setup
from mimicry.tuning.hf_diffusers.sd3.run_facts import describe_setup, peak_memory_bytes
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint, Checkpoints, Stateful
from mimicry.tuning.hf_diffusers.training.rng import Sample
from mimicry.tuning.hf_diffusers.training.trackers import Reports
from mimicry.tuning.options.config import RESUME_LATEST, RESUME_NONE

# A loss is a spike when it is this many times the median of the losses before it, of which at most WINDOW
# and at least MINIMUM count: single losses differ by a factor of two or three with the timesteps drawn.
SPIKE_FACTOR = 5.0
SPIKE_WINDOW = 50
SPIKE_MINIMUM = 10


def say(text: str) -> None:
    """Print a line for people at once, in the main process; under the wrapper it goes to train.log."""
    # A training does not end because its log does: the disk may be full, or a reader gone.
    if process_index() == 0:
        with suppress(OSError):
            print(printable(text), flush=True)


@dataclass
class RunRecord:
    """The record of one run, from its first line to its end.

    Of several processes the main one alone writes; the others keep the same record to themselves.
    """

    setup: Setup
    # What lets us write into the folder: looked at each time, since another process may have taken it over.
    claim: Claim | None = None
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=utc_now)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    eval_losses: dict[int, float] = field(default_factory=dict)
    # What was evaluated on, or why nothing was.
    eval_facts: dict[str, Any] = field(default_factory=dict)
    loss_spikes: list[dict[str, float]] = field(default_factory=list)
    # The adapter is published: whatever comes now does not change that.
    complete: bool = False
    # What the processes before a resumption took, up to the checkpoint.
    former_seconds: float = 0.0
    _draws: str = ""
    _new_draws: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set aside what is in the way, and take up the record of the run that is to go on, if there is one.

        Raises:
            UsageError: the checkpoint that was asked for does not fit.
        """
        output_dir = self.setup.job.output_dir
        self.resumed: Checkpoint | None = None
        self._known = describe_setup(self.setup)
        self.checkpoints = Checkpoints(
            output_dir=output_dir,
            recipe=self._known["recipe"],
            images=self._known["images"],
            class_images=self._known.get("class_images"),
            limit=self.setup.job.config.checkpoints_total_limit,
        )
        self._writes = self.setup.processes.is_main
        self.resumed = self.setup.processes.decided_by_main(self._clear_way)
        if self.resumed is not None:
            self._take_up(self.resumed)
        elif self._writes:
            set_aside(output_dir, [SAMPLES], "unfinished")
            (output_dir / METRICS).write_bytes(b"")
        self._report_id = self._chosen_report_id()
        self.reports = Reports(self.setup.accelerator, self.warn)
        if self._writes:
            options = self._known["recipe"]["options"]
            self.reports.begin(output_dir, options, run_id=self._report_id, steps=self.steps)
        self._write(State.RUNNING)

    def _clear_way(self) -> Checkpoint | None:
        """Choose the checkpoint to go on from, and set aside what is in the way."""
        config, output_dir = self.setup.job.config, self.setup.job.output_dir
        complete = (output_dir / WEIGHTS).exists()
        self._compare_sisters(complete)
        # Where an adapter is complete, it is to be trained anew, not from what its training has left.
        latest = config.resume_from_checkpoint == RESUME_LATEST
        wanted = RESUME_NONE if complete and latest else config.resume_from_checkpoint
        resumed, unused = self.checkpoints.choose(wanted)
        output_dir.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clear_way(unused)
        for name, reason in unused.items():
            self.warn(f"not resumed from {name}: {reason}; it is set aside")
        if complete:
            aside = AdapterFolder(output_dir).set_aside("replaced")
            if aside is not None and resumed is not None and not resumed.folder.exists():
                resumed = replace(resumed, folder=aside / resumed.folder.name)
        return resumed

    def _compare_sisters(self, complete: bool) -> None:
        """Warn where the artist's other adapters were made by other numerics, or refuse to train."""
        numerics, recipe = self._known["numerics"], self._known["recipe"]
        found = sister_differences(self.setup.job.output_dir, recipe, numerics)
        self._known["other_numerics"] = found
        if not found:
            return
        if not self.setup.job.config.require_same_numerics:
            self.warn(describe_differences(found))
            return
        problem = (
            f"{describe_differences(found)}, and --require-same-numerics is given; train this one as those were, those again "
            f"with --overwrite, or leave it out"
        )
        if not complete:
            self.setup.job.output_dir.mkdir(parents=True, exist_ok=True)
            self._write(State.BLOCKED, error=problem)
        raise TrainingFailed(problem)

    @property
    def images(self) -> list[ImageRecord]:
        """The images as they were at the start of the run."""
        records: list[ImageRecord] = self._known["images"]
        return records

    @property
    def steps(self) -> int:
        """The optimizer steps that were taken so far, those before a resumption included."""
        return len(self.losses)

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all processes that took part in it."""
        return round(self.former_seconds + time.monotonic() - self.started, 3)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the run; what takes place several times is added up."""
        begin = time.monotonic()
        yield
        seconds = self.stage_seconds.get(name, 0.0) + time.monotonic() - begin
        self.stage_seconds[name] = round(seconds, 3)

    def warn(self, text: str) -> None:
        """Say a warning, and keep it in training_run.json; once, however often it comes."""
        if text not in self._known["warnings"]:
            self._known["warnings"].append(text)
            say(f"warning: {text}")

    def add_memory(self, **facts: Any) -> None:
        """Keep in training_run.json how memory is saved, which changes no bit of the adapter."""
        self._known["memory"] |= facts

    def add_step(
        self, step: int, loss: float, learning_rate: float, grad_norm: float, seconds: float
    ) -> None:
        """Append a line to metrics.jsonl: one for each optimizer step, counted from 1.

        A norm that is no finite number, of a step that fp16's scaler leaves out, becomes null.
        """
        self._note_spike(step, loss)
        self.losses.append(loss)
        self._close_draws()
        line = {
            "step": step,
            "loss": loss,
            "lr": learning_rate,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "seconds": round(seconds, 4),
            "peak_memory_bytes": peak_memory_bytes(self.setup.device),
        }
        self._append_metrics(line)

    def add_eval(self, step: int, loss: float) -> None:
        """Append the evaluation loss after optimizer step `step` to metrics.jsonl; 0 is the base model."""
        self.eval_losses[step] = loss
        self._append_metrics({"step": step, "eval_loss": loss})

    def add_class_images(self) -> None:
        """Keep in training_run.json, and in checkpoints, which class images were generated."""
        if self.setup.class_images is not None and "class_images" not in self._known:
            facts = self.setup.class_images.record()
            self._known["class_images"] = facts
            self.checkpoints = replace(self.checkpoints, class_images=facts)

    def add_draw(self, sample: Sample, timestep_index: int) -> None:
        """Take a sample into the hash of all draws, which is equal for equal sequences of samples.

        It counts once its optimizer step was taken.
        """
        view = sample.view
        kind = [sample.kind] if sample.kind else []
        self._new_draws.append(
            [sample.index, sample.stem, view.across, view.down, view.flipped, timestep_index, *kind]
        )

    def save_checkpoint(self, parameters: Mapping[str, Tensor], parts: Mapping[str, Stateful]) -> None:
        """Write a checkpoint of the present step; one that cannot be written is a warning."""
        if not self.losses or not self._writes:
            return
        self._check_claim()
        facts = {
            "recipe_hash": self._known["recipe_hash"],
            "numerics": self._known["numerics"],
            "draws": self._draws,
            "loss_spikes": self.loss_spikes,
            "report_id": self._report_id,
            "started_at": self.started_at,
            "seconds": self.seconds(),
        }
        try:
            self.checkpoints.save(self.steps, parameters, parts, facts)
        except (OSError, SafetensorError) as error:
            reason = disk_fault(error) or str(getattr(error, "strerror", None) or error)
            self.warn(f"checkpoint-{self.steps} could not be written: {reason}")
        else:
            say(f"checkpoint-{self.steps} is there")

    def finished(self) -> dict[str, Any]:
        """Return the whole content of training_run.json for a run that reached its last step."""
        return self._content(State.COMPLETE) | {
            "final_loss": self.losses[-1],
            "mean_loss": fmean(self.losses),
            "draws_sha256": self._draws,
        }

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run the body; how it ends, if not well, is written to training_run.json."""
        try:
            yield
        except Interrupted as stop:
            self._write_end(State.INTERRUPTED, f"stopped by {stop}")
            raise
        except ClaimLost:
            raise
        except MimicryError as error:
            self._write_end(State.FAILED, str(error))
            raise
        except torch.OutOfMemoryError as error:
            message = (
                f"out of GPU memory: {str(error).splitlines()[0]}; type a smaller --resolution or "
                f"--train-batch-size, and leave --gradient-checkpointing and --cache-latents on"
            )
            self._write_end(State.FAILED, message)
            raise TrainingFailed(message) from error
        except Exception as error:
            fault = disk_fault(error)
            self._write_end(State.FAILED, fault or f"{type(error).__name__}: {error}".strip())
            if fault:
                raise TrainingFailed(fault) from error
            raise
        finally:
            self.reports.close()

    def _check_claim(self) -> None:
        if self.claim is not None:
            self.claim.check()

    def _append_metrics(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        self._check_claim()
        with (self.setup.job.output_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self.reports.add(line)

    def _chosen_report_id(self) -> str:
        """Return the name of this run for trackers: that of the run that it goes on with, or a new one."""
        new = sha256_text(f"{self.setup.job.output_dir.absolute()} {self.started_at}")[:16]
        return new if self.resumed is None else str(self.resumed.facts.get("report_id", new))

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """Go on with the record of the run that wrote `checkpoint`, as it was then."""
        metrics = checkpoint.metrics()
        if self._writes:
            write_bytes(self.setup.job.output_dir / METRICS, metrics)
        lines = [json.loads(line) for line in metrics.splitlines()]
        self.losses = [line["loss"] for line in lines if "loss" in line]
        self.eval_losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
        self.loss_spikes = list(checkpoint.facts["loss_spikes"])
        self._draws = checkpoint.facts["draws"]
        self.started_at = checkpoint.facts.get("started_at", self.started_at)
        self.former_seconds = checkpoint.facts.get("seconds", 0.0)
        say(f"resuming after step {self.steps}")
        changed = numerics_differences(checkpoint.facts["numerics"], self._known["numerics"])
        if changed:
            self.warn(f"resumed with other numerics, so the last bits may differ: {', '.join(changed)}")

    def _note_spike(self, step: int, loss: float) -> None:
        """Record a loss far above those just before it: SPIKE_FACTOR times their median."""
        before = self.losses[-SPIKE_WINDOW:]
        if len(before) >= SPIKE_MINIMUM and loss > SPIKE_FACTOR * median(before):
            self.loss_spikes.append({"step": step, "loss": loss})
            say(f"loss spike at step {step}: {loss:.4f}, where the median was {median(before):.4f}")

    def _close_draws(self) -> None:
        """Take the draws of the steps that were taken into the hash, a chain that can be taken up again."""
        end = self.steps * self.setup.job.config.samples_per_step
        taken = [facts for facts in self._new_draws if facts[0] < end]
        self._new_draws = [facts for facts in self._new_draws if facts[0] >= end]
        self._draws = sha256_text(self._draws + canonical_json(taken))

    def _write_end(self, status: State, error: str) -> None:
        if not self.complete:
            # What has ended the run may be in the way of this, too: it is what is to be told.
            with stop_signals_held(), suppress(OSError):
                self._write(status, error=scrub(error))

    def _write(self, status: State, **more: Any) -> None:
        if self._writes:
            self._check_claim()
            write_json(AdapterFolder(self.setup.job.output_dir).record, self._content(status) | more)

    def _content(self, status: State) -> dict[str, Any]:
        return self._known | {
            "status": status,
            "started_at": self.started_at,
            "finished_at": None if status == State.RUNNING else utc_now(),
            "seconds": self.seconds(),
            "stage_seconds": self.stage_seconds,
            "steps": self.steps,
            "resumed_from": None if self.resumed is None else self.resumed.step,
            "loss_spikes": self.loss_spikes,
            "peak_memory_bytes": peak_memory_bytes(self.setup.device),
            "eval_loss": self._eval_loss(),
        }

    def _eval_loss(self) -> dict[str, Any]:
        if "skipped" in self.eval_facts:
            return self.eval_facts
        end = self.eval_losses.get(self.setup.step_count)
        return {"start": self.eval_losses.get(0), "end": end, **self.eval_facts}
