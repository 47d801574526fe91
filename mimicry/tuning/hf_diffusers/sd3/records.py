"""What a run leaves beside its weights: metrics.jsonl, training_run.json, and a line for each stage."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from mimicry.common.children import Interrupted
from mimicry.common.errors import MimicryError, TrainingFailed
from mimicry.common.files import utc_now, write_json
from mimicry.tuning.adapter import METRICS, TRAINING_RUN, WEIGHTS, set_adapter_aside
from mimicry.tuning.hf_diffusers.sd3.draws import Sample
from mimicry.tuning.hf_diffusers.sd3.job import Setup
from mimicry.tuning.hf_diffusers.sd3.kernels import attention_names
from mimicry.tuning.provenance import OWN_TRAINER, describe_run


def say(text: str) -> None:
    """Print a line for people at once; under the wrapper it goes to train.log."""
    print(text, flush=True)


@dataclass
class RunRecord:
    """The record of one run, from its first line to its end."""

    setup: Setup
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=utc_now)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    eval_losses: dict[int, float] = field(default_factory=dict)
    # What was evaluated on, or why nothing was.
    eval_facts: dict[str, Any] = field(default_factory=dict)
    _draws: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        output_dir = self.setup.job.output_dir
        output_dir.mkdir(parents=True, exist_ok=True)
        if (output_dir / WEIGHTS).exists():
            set_adapter_aside(output_dir, "replaced")
        (output_dir / METRICS).write_bytes(b"")
        self._known = self._describe()
        self._write("running")

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

    def add_numerics(self, **facts: Any) -> None:
        """Keep in training_run.json what was found only after the start of the run."""
        self._known["numerics"] |= facts

    def add_step(
        self, step: int, loss: float, learning_rate: float, grad_norm: float, seconds: float
    ) -> None:
        """Append a line to metrics.jsonl: one for each optimizer step, counted from 1."""
        self.losses.append(loss)
        line = {
            "step": step,
            "loss": loss,
            "lr": learning_rate,
            "grad_norm": grad_norm,
            "seconds": round(seconds, 4),
            "peak_memory_bytes": self._peak_memory_bytes(),
        }
        self._append_metrics(line)

    def add_eval(self, step: int, loss: float) -> None:
        """Append the evaluation loss after optimizer step `step` to metrics.jsonl; 0 is the base model."""
        self.eval_losses[step] = loss
        self._append_metrics({"step": step, "eval_loss": loss})

    def add_draw(self, sample: Sample, timestep_index: int) -> None:
        """Take a sample into the hash of all draws, which is equal for equal sequences of samples."""
        view = sample.view
        facts = [sample.index, sample.stem, view.across, view.down, view.flipped, timestep_index]
        self._draws.update(json.dumps(facts).encode())

    def finished(self) -> dict[str, Any]:
        """Return the whole content of training_run.json for a run that reached its last step."""
        return self._content("complete") | {
            "final_loss": self.losses[-1],
            "mean_loss": fmean(self.losses),
            "draws_sha256": self._draws.hexdigest(),
        }

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run the body; how it ends, if not well, is written to training_run.json."""
        try:
            yield
        except Interrupted as stop:
            self._write("interrupted", error=f"stopped by {stop}")
            raise
        except MimicryError as error:
            self._write("failed", error=str(error))
            raise
        except torch.OutOfMemoryError as error:
            message = (
                f"out of GPU memory: {str(error).splitlines()[0]}; type a smaller --resolution or "
                f"--train-batch-size, and leave --gradient-checkpointing and --cache-latents on"
            )
            self._write("failed", error=message)
            raise TrainingFailed(message) from error
        except Exception as error:
            self._write("failed", error=f"{type(error).__name__}: {error}".strip())
            raise

    def _append_metrics(self, line: dict[str, Any]) -> None:
        with (self.setup.job.output_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _write(self, status: str, **more: Any) -> None:
        write_json(self.setup.job.output_dir / TRAINING_RUN, self._content(status) | more)

    def _content(self, status: str) -> dict[str, Any]:
        return self._known | {
            "status": status,
            "started_at": self.started_at,
            "finished_at": None if status == "running" else utc_now(),
            "seconds": round(time.monotonic() - self.started, 3),
            "stage_seconds": self.stage_seconds,
            "steps": len(self.losses),
            "resumed_from": None,
            "peak_memory_bytes": self._peak_memory_bytes(),
            "eval_loss": self._eval_loss(),
        }

    def _eval_loss(self) -> dict[str, Any]:
        if "skipped" in self.eval_facts:
            return self.eval_facts
        last = self.setup.job.config.max_train_steps
        return {"start": self.eval_losses.get(0), "end": self.eval_losses.get(last), **self.eval_facts}

    def _describe(self) -> dict[str, Any]:
        setup = self.setup
        known = describe_run(
            setup.job.config,
            setup.model,
            trainer=OWN_TRAINER,
            command=setup.job.command,
            notes=setup.job.notes,
        )
        eval_dir = setup.job.eval_data_dir
        known["paths"] |= {
            "instance_data_dir": str(setup.job.instance_data_dir.absolute()),
            "output_dir": str(setup.job.output_dir.absolute()),
            "eval_data_dir": None if eval_dir is None else str(eval_dir.absolute()),
        }
        return known | {"images": setup.images.records(), "numerics": self._numerics()}

    def _numerics(self) -> dict[str, Any]:
        """Return what may change the last bits of a result without being part of the recipe."""
        cuda = self.setup.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.setup.device) if cuda else "cpu",
            "cuda": torch.version.cuda if cuda else None,
            "threads": None if cuda else torch.get_num_threads(),
            "cpu_capability": None if cuda else torch.backends.cpu.get_cpu_capability(),
            "attention_backend": ", ".join(attention_names(self.setup.job.config, self.setup.device))
            or "default",
            "compile": self.setup.job.config.compile_blocks,
            "quantisation": None,
            "deterministic": self.setup.job.config.deterministic,
            "tf32": self.setup.job.config.allow_tf32,
            "torch": torch.__version__,
        }

    def _peak_memory_bytes(self) -> int:
        """Return the peak so far: of the GPU's memory when there is one, else of this process."""
        if self.setup.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.setup.device))
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if os.uname().sysname == "Darwin" else peak * 1024)
