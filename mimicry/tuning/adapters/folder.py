"""The folder of one adapter: the names of its files, and everything that is done with them.

The weights are written last, so that their name is the sign of completion.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import FileIdentity, file_identity, read_json, set_aside, write_json
from mimicry.study.tree import sister_folders
from mimicry.tuning.adapters.recipe import recipe_differences
from mimicry.tuning.adapters.safetensors_file import write_canonically
from mimicry.tuning.adapters.training_run import TRAINING_RUN, TrainingRun, read_object
from mimicry.tuning.adapters.weights import (
    ANY_LORA,
    LORA_ARGUMENTS,
    Adapter,
    AdapterFormat,
    check_header,
    check_weights,
    peft_config,
)

WEIGHTS = "pytorch_lora_weights.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
METRICS = "metrics.jsonl"
TRAIN_LOG = "train.log"
SAMPLES = "samples"
# Within a checkpoint of our own trainer.
CHECKPOINT_FACTS = "checkpoint.json"
_OF_ONE_RUN = (WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN, METRICS, SAMPLES)
# So much of metrics.jsonl holds its last line.
_TAIL_BYTES = 4096
_CHECKPOINT = re.compile(r"^checkpoint-([1-9][0-9]*)$")
# Files and folders that are being written or removed: leftovers, once no process works in the folder.
_TEMPORARY = re.compile(r"^\.(tmp|saving|checkpoint|claim)-")


class AdapterFolder:
    """The folder of one adapter, which need not exist; its record is read once."""

    def __init__(self, path: Path, form: AdapterFormat = ANY_LORA) -> None:
        self.path, self.form = path, form
        self.weights, self.config, self.record = path / WEIGHTS, path / ADAPTER_CONFIG, path / TRAINING_RUN
        self.metrics, self.log, self.samples = path / METRICS, path / TRAIN_LOG, path / SAMPLES

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def run(self) -> TrainingRun | None:
        """The record of the training, or None when there is none; AdapterBroken when it cannot be read."""
        return TrainingRun.read(self.record)

    @property
    def readable_run(self) -> TrainingRun:
        """The record of the training; an empty one when there is none that can be read."""
        try:
            return self.run or TrainingRun({})
        except AdapterBroken:
            return TrainingRun({})

    @property
    def has_weights(self) -> bool:
        return self.weights.exists()

    def weights_identity(self) -> FileIdentity:
        return file_identity(self.weights)

    def check(self, rank: int | None) -> Adapter:
        """Check the weights in full, their sha256 against the record too, or raise AdapterBroken."""
        adapter = check_weights(self.weights, self.form, rank)
        if self.run is not None and self.run.weights_sha256 != adapter.sha256:
            raise AdapterBroken(f"{self.weights} is not the file whose sha256 stands in {TRAINING_RUN}")
        return adapter

    def check_header(self, rank: int | None) -> None:
        """Check the header of the weights, and that the record is about a training that ended.

        Without a record, what adapter_config.json says of the LoRA, if it is there, must be what the weights
        say.
        """
        header = check_header(self.weights, self.form, rank)
        if self.run is not None:
            if self.run.weights_sha256 is None:
                raise AdapterBroken(f"{self.record} is about a training that did not end")
            return
        config = read_object(self.config)
        if config is None:
            return
        facts = {"r": header.rank, **header.stated_arguments(LORA_ARGUMENTS)}
        wrong = [name for name, value in facts.items() if _in_order(config.get(name)) != _in_order(value)]
        if wrong:
            raise AdapterBroken(f"{self.config} has other {', '.join(wrong)} than the weights beside it")

    def config_fault(self) -> str:
        """Say what is wrong with the adapter_config.json of a complete adapter; empty when nothing is."""
        expected = self._expected_config()
        if expected is None:
            return ""
        try:
            found = read_json(self.config)
        except FileNotFoundError:
            return f"{ADAPTER_CONFIG} is missing"
        except (OSError, ValueError, RecursionError):
            found = None
        return "" if found == expected else f"{ADAPTER_CONFIG} is not the one that was written"

    def write_config(self) -> None:
        write_json(self.config, self._expected_config())

    def _expected_config(self) -> dict[str, Any] | None:
        """Return what adapter_config.json should hold; None when the adapter is not one of ours."""
        run = self.run
        paths = (run and run.paths) or {}
        if run is None or run.options is None or "pretrained_model_name_or_path" not in paths:
            return None
        header = check_header(self.weights, self.form, None)
        return peft_config(self.form, header, paths["pretrained_model_name_or_path"], run.options)

    def publish(self, source: Path, training_run: Mapping[str, Any], base_model: str | None) -> Adapter:
        """Check new weights and put them, with their two JSON files, in place; the weights come last.

        `training_run` is the record without `weights`. AdapterBroken says that nothing was published.
        """
        run = TrainingRun(training_run)
        canonical = source.with_name(source.name + ".canonical")
        try:
            write_canonically(source, canonical)
            adapter = check_weights(canonical, self.form, run.rank)
            write_json(self.config, peft_config(self.form, adapter, base_model, run.options))
            write_json(self.record, {**training_run, "weights": adapter.record()})
            canonical.replace(self.weights)
        finally:
            canonical.unlink(missing_ok=True)
        return adapter

    def checkpoint_names(self) -> list[str]:
        """Return the names of the checkpoints, whole or not, the newest first."""
        try:
            matches = [_CHECKPOINT.match(name) for name in os.listdir(self.path)]  # noqa: PTH208 - it is quick
        except FileNotFoundError:
            return []
        steps = sorted((int(match[1]) for match in matches if match is not None), reverse=True)
        return [f"checkpoint-{step}" for step in steps]

    def last_step(self) -> int:
        """Return the optimizer step of the last line of metrics.jsonl; 0 when there is none."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().rpartition(b"\n")[0].splitlines()
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0

    def leftovers(self) -> list[str]:
        """Return the names of what killed processes were writing."""
        try:
            return [path.name for path in self.path.iterdir() if _TEMPORARY.match(path.name)]
        except OSError:
            return []

    def spent_checkpoints(self) -> list[str]:
        """Return the names of our trainer's checkpoints beside the adapter that came of them."""
        names = self.checkpoint_names() if self.has_weights else []
        return [name for name in names if (self.path / name / CHECKPOINT_FACTS).exists()]

    def remove(self, names: Sequence[str]) -> None:
        """Remove files and folders of this one, as far as possible. Only for the holder of its claim."""
        for name in names:
            path = self.path / name
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def set_aside(self, reason: str) -> Path | None:
        """Move the files of an adapter, and checkpoints, out of the way; train.log goes on."""
        return set_aside(self.path, [*_OF_ONE_RUN, *self.checkpoint_names()], reason)


def _in_order(value: Any) -> Any:
    # Other tools write sets in any order.
    return sorted(map(str, value)) if isinstance(value, list) else value


def numerics_differences(former: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Say in words how two `numerics` blocks differ; what only one of them has is not a difference."""
    return [
        f"{name} {former[name]!r} -> {value!r}"
        for name, value in present.items()
        if name in former and former[name] != value
    ]


def sister_differences(
    output_dir: Path, recipe: Mapping[str, Any], numerics: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Return how the numerics of complete adapters of this recipe in sister folders differ, by condition."""
    found = {}
    for condition, path in sister_folders(output_dir).items():
        folder = AdapterFolder(path)
        run = folder.readable_run
        if folder.has_weights and run.recipe is not None and not recipe_differences(run.recipe, recipe):
            differences = numerics_differences(run.numerics or {}, numerics)
            if differences:
                found[condition] = differences
    return found


def describe_differences(differences: Mapping[str, list[str]]) -> str:
    """Return what `sister_differences` has found as one phrase; empty when it has found nothing."""
    words = [f"{name} ({', '.join(changed)})" for name, changed in differences.items()]
    return f"other numerics than {'; '.join(words)}" if words else ""
