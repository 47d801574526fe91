"""Metrics for dashboards: tensorboard and wandb, through accelerate, next to metrics.jsonl.

They receive steps and the recipe's options, but no path, host or token. If one fails, nothing more is sent.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from mimicry.study import AdapterId
from mimicry.tuning.hf_diffusers.spec.preflight import chosen_trackers
from mimicry.tuning.options.config import TuningConfig

_PROJECT = "mimicry"
_SHOWN = ("loss", "lr", "grad_norm", "eval_loss")
# By default wandb sends the command line, the machine, the checkout and all that is printed.
_QUIET_WANDB = {
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "disable_git": True,
    "disable_code": True,
    "console": "off",
}


def tracker_arguments(config: TuningConfig, output_dir: Path) -> dict[str, Any]:
    """Return the arguments of an Accelerator with the trackers that `config` asks for."""
    names = chosen_trackers(config)
    if not names:
        return {}
    folder = output_dir / os.path.expanduser(config.logging_dir)  # noqa: PTH111 - no home, no error
    if not folder.is_relative_to(output_dir):
        # A folder for all artists: each has the same place in it as in the study.
        folder = folder / _study_name(output_dir)
    return {"log_with": names, "project_config": ProjectConfiguration(logging_dir=str(folder))}


def _study_name(output_dir: Path) -> str:
    adapter = AdapterId.parse(output_dir)
    return output_dir.absolute().name if adapter is None else f"{adapter.condition}/{adapter.artist}"


@dataclass
class Reports:
    """The trackers of one run; none, where none was asked for."""

    accelerator: Accelerator
    warn: Callable[[str], None]

    def begin(self, output_dir: Path, options: Mapping[str, Any], *, run_id: str, steps: int) -> None:
        """Start the trackers; `options` are those of the recipe, `steps` were taken before.

        A run that is resumed goes on under its id. What was sent of steps that are taken again counts no
        more: tensorboard is told to forget it, and wandb does not take a step twice.
        """
        if not self.accelerator.log_with:
            return
        wandb = {
            "id": run_id,
            "resume": "allow",
            "name": _study_name(output_dir),
            "dir": self.accelerator.logging_dir,
            "settings": _QUIET_WANDB,
        }
        with self._only_a_warning():
            Path(self.accelerator.logging_dir).mkdir(parents=True, exist_ok=True)
            self.accelerator.init_trackers(
                _PROJECT,
                # tensorboard would keep the options once more for each time that a run is resumed.
                config=None if steps else dict(options),
                init_kwargs={"tensorboard": {"purge_step": steps + 1 if steps else 0}, "wandb": wandb},
            )

    def add(self, line: Mapping[str, Any]) -> None:
        values = {name: line[name] for name in _SHOWN if line.get(name) is not None}
        if self.accelerator.trackers and values:
            with self._only_a_warning():
                self.accelerator.log(values, step=line["step"])

    def close(self) -> None:
        with self._only_a_warning():
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.accelerator.trackers = []

    @contextmanager
    def _only_a_warning(self) -> Iterator[None]:
        try:
            yield
        # Another library, over a network: it may raise any error.
        except Exception as error:
            self.accelerator.trackers = []
            # The text may name a path of this machine, which has no place in training_run.json.
            print(f"--report_to: {error}", flush=True)
            self.warn(f"metrics are not reported any more: {type(error).__name__}; metrics.jsonl has them")
