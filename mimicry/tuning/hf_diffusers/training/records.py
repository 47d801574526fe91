"""What a run leaves beside its weights: metrics.jsonl, training_run.json, and a line for each stage."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mimicry.common.claims import Claim
from mimicry.common.errors import ClaimLost, TrainingFailed, disk_fault
from mimicry.common.files import set_aside, sha256_text, utc_now, write_bytes, write_json
from mimicry.study import ImageRecord, State
from mimicry.tuning.adapters import SAMPLES, Adapter, AdapterFolder, complete_options
from mimicry.tuning.adapters.numerics import describe_differences, numerics_differences, sister_differences
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint, Checkpoints, Stateful
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.history import History
from mimicry.tuning.hf_diffusers.training.runtime import Runtime
from mimicry.tuning.hf_diffusers.training.trackers import Reports
from mimicry.tuning.options.config import RESUME_LATEST, RESUME_NONE, TuningConfig


@dataclass(kw_only=True)
class RunRecord:
    """The record of one run; nothing is written before `begin`.

    Only the main process writes; others keep the same record in memory.

    Attributes:
        facts: what is known before training; see `describe_training`.
        claim: what lets us write into the folder; checked each time, since another process may have taken it.
        eval_facts: what was evaluated on, or why nothing was.
        adapter: what was published, which no later error changes.
        earlier_seconds: what the processes before a resumption took, up to the checkpoint.
    """

    output_dir: Path
    config: TuningConfig
    facts: dict[str, Any]
    runtime: Runtime
    claim: Claim | None = None
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=utc_now)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    eval_facts: dict[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    resumed: Checkpoint | None = None
    earlier_seconds: float = 0.0
    # The seconds of the stages within the one that is being timed.
    _within: float = 0.0

    @cached_property
    def history(self) -> History:
        """The losses and draws so far."""
        return History(self.config.samples_per_step)

    def begin(self) -> None:
        """Set aside what is in the way, load the record of a run that is resumed, and say that we run.

        Raises:
            UsageError: the checkpoint that was asked for does not fit.
            TrainingFailed: the numerics differ from those of sister adapters, and must not.
        """
        self.resumed = self.runtime.processes.broadcast_from_main(self._clear_way)
        if self.resumed is not None:
            self._resume(self.resumed)
        elif self._writes:
            set_aside(self.output_dir, [SAMPLES], "unfinished")
            self._folder.metrics.write_bytes(b"")
        if self._writes:
            options = complete_options(self.facts["recipe"]) or {}
            self.reports.begin(self.output_dir, options, run_id=self._report_id, steps=self.steps)
        self.write(State.RUNNING)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints that lie in the folder, of this run or another."""
        return Checkpoints(
            output_dir=self.output_dir,
            recipe=self.facts["recipe"],
            images=self.facts["images"],
            class_images=self.facts.get("class_images"),
            limit=self.config.checkpoints_total_limit,
        )

    @cached_property
    def reports(self) -> Reports:
        """The trackers that metrics are sent to."""
        return Reports(self.runtime.accelerator, self.warn)

    @property
    def _folder(self) -> AdapterFolder:
        return AdapterFolder(self.output_dir)

    @property
    def _writes(self) -> bool:
        return self.runtime.processes.is_main

    def _clear_way(self) -> Checkpoint | None:
        """Choose the checkpoint to resume from, and set aside what is in the way."""
        complete = self._folder.has_weights
        self._compare_sisters(complete)
        # Where an adapter is complete, it is to be trained anew, not from what its training has left.
        latest = self.config.resume_from_checkpoint == RESUME_LATEST
        wanted = RESUME_NONE if complete and latest else self.config.resume_from_checkpoint
        resumed, unused = self.checkpoints.choose(wanted)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clear_way(unused)
        for name, reason in unused.items():
            self.warn(f"not resumed from {name}: {reason}; it is set aside")
        if complete:
            aside = self._folder.set_aside("replaced")
            if aside is not None and resumed is not None and not resumed.folder.exists():
                resumed = replace(resumed, folder=aside / resumed.folder.name)
        return resumed

    def _compare_sisters(self, complete: bool) -> None:
        """Warn where the artist's other adapters were made by other numerics, or refuse to train."""
        found = sister_differences(self.output_dir, self.facts["recipe"], self.facts["numerics"])
        self.facts["other_numerics"] = found
        if not found:
            return
        if not self.config.require_same_numerics:
            self.warn(describe_differences(found))
            return
        problem = (
            f"{describe_differences(found)}, and --require-same-numerics is given; train this one as those "
            f"were, those again with --overwrite, or leave it out"
        )
        if not complete:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self.write(State.BLOCKED, error=problem)
        raise TrainingFailed(problem)

    @property
    def images(self) -> list[ImageRecord]:
        """The images as they were at the start of the run."""
        records: list[ImageRecord] = self.facts["images"]
        return records

    @property
    def complete(self) -> bool:
        """Whether the adapter is published."""
        return self.adapter is not None

    @property
    def steps(self) -> int:
        """The optimizer steps that were taken so far, those before a resumption included."""
        return self.history.steps

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all processes that took part in it."""
        return round(self.earlier_seconds + time.monotonic() - self.started, 3)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the run; what takes place several times is added up.

        The time of a stage within another one is not part of the other one's.
        """
        begin, within_outer, self._within = time.monotonic(), self._within, 0.0
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + seconds - self._within
            self._within = within_outer + seconds

    def warn(self, text: str) -> None:
        """Print a warning and keep it in training_run.json, once for each text."""
        if text not in self.facts["warnings"]:
            self.facts["warnings"].append(text)
            say(f"warning: {text}")

    def add_memory(self, **facts: Any) -> None:
        """Keep in training_run.json how memory is saved, which changes no bit of the adapter."""
        self.facts["memory"] |= facts

    def add_step(
        self, step: int, loss: float, learning_rate: float, grad_norm: float, seconds: float
    ) -> None:
        """Append a line to metrics.jsonl: one for each optimizer step, counted from 1.

        A norm that is not a finite number, of a step that fp16's scaler leaves out, becomes null.
        """
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

    def save_checkpoint(self, parameters: Mapping[str, Tensor], parts: Mapping[str, Stateful]) -> None:
        """Write a checkpoint of the present step; one that cannot be written is a warning."""
        if not self.steps or not self._writes:
            return
        self._check_claim()
        facts = {
            "recipe_hash": self.facts["recipe_hash"],
            "numerics": self.facts["numerics"],
            "draws": self.history.draws_hash,
            "loss_spikes": self.history.loss_spikes,
            "report_id": self._report_id,
            "started_at": self.started_at,
            "seconds": self.seconds(),
        }
        try:
            with self.stage("save"):
                self.checkpoints.save(self.steps, parameters, parts, facts)
        except (OSError, SafetensorError) as error:
            reason = disk_fault(error) or str(getattr(error, "strerror", None) or error)
            self.warn(f"checkpoint-{self.steps} could not be written: {reason}")
        else:
            say(f"checkpoint-{self.steps} is there")

    def finished(self) -> dict[str, Any]:
        """Return the whole content of training_run.json for a run that reached its last step."""
        return self.content(State.COMPLETE) | {
            "final_loss": self.history.losses[-1],
            "mean_loss": fmean(self.history.losses),
            "draws_sha256": self.history.draws_hash,
        }

    def end_with(self, adapter: Adapter) -> None:
        """Note that the adapter is published, and remove the checkpoints that led to it."""
        self.adapter = adapter
        self.checkpoints.remove_all()
        say(f"saved {self.output_dir}: rank {adapter.rank}, {len(adapter.modules)} modules")

    def write_after_end(self) -> None:
        """Write the record of a published adapter anew, with what took place since: times and warnings.

        It is left as it is where another process has taken the folder over, or the disk is full.
        """
        if self.adapter is None:
            return
        with suppress(ClaimLost, OSError), nullcontext() if self.claim is None else self.claim.fenced():
            write_json(self._folder.record, self.finished() | {"weights": self.adapter.record()})

    def _check_claim(self) -> None:
        if self.claim is not None:
            self.claim.check()

    def _append_metrics(self, line: dict[str, Any]) -> None:
        if not self._writes:
            return
        self._check_claim()
        with self._folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self.reports.add(line)

    @cached_property
    def _report_id(self) -> str:
        """The name of this run for trackers: that of the run that it resumes, or a new one."""
        new = sha256_text(f"{self.output_dir.absolute()} {self.started_at}")[:16]
        return new if self.resumed is None else str(self.resumed.facts.get("report_id", new))

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Go on with the record of the run that wrote `checkpoint`, as it was then."""
        metrics = checkpoint.metrics()
        if self._writes:
            write_bytes(self._folder.metrics, metrics)
        self.history.restore(metrics, checkpoint.facts)
        self.started_at = checkpoint.facts.get("started_at", self.started_at)
        self.earlier_seconds = checkpoint.facts.get("seconds", 0.0)
        say(f"resuming after step {self.steps}")
        changed = numerics_differences(checkpoint.facts["numerics"], self.facts["numerics"])
        if changed:
            self.warn(f"resumed with other numerics, so the last bits may differ: {', '.join(changed)}")

    def write(self, status: State, **more: Any) -> None:
        """Write training_run.json of a run in that state, and what `more` there is to say."""
        if self._writes:
            self._check_claim()
            write_json(self._folder.record, self.content(status) | more)

    def content(self, status: State) -> dict[str, Any]:
        """Return what training_run.json holds of a run in that state."""
        return self.facts | {
            "status": status,
            "started_at": self.started_at,
            "finished_at": None if status == State.RUNNING else utc_now(),
            "seconds": self.seconds(),
            "stage_seconds": {name: round(seconds, 3) for name, seconds in self.stage_seconds.items()},
            "steps": self.steps,
            "resumed_from": None if self.resumed is None else self.resumed.step,
            "earlier_seconds": self.earlier_seconds,
            "loss_spikes": self.history.loss_spikes,
            "peak_memory_bytes": self.runtime.peak_memory_bytes(),
            "eval_loss": self._eval_loss(),
        }

    def _eval_loss(self) -> dict[str, Any]:
        if "skipped" in self.eval_facts:
            return self.eval_facts
        end = self.history.eval_losses.get(self.config.step_count(len(self.images)))
        return {"start": self.history.eval_losses.get(0), "end": end, **self.eval_facts}
