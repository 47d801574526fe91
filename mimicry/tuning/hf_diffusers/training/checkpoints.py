"""Checkpoints: the state after an optimizer step, from which a run goes on as if it had never stopped.

    checkpoint-{step}/adapter.safetensors    parameters of the LoRA, in fp32
                      state.safetensors      tensors of the optimizer and of others with a state
                      metrics.jsonl          the metrics up to this step
                      checkpoint.json        step, what it belongs to, states without their tensors, sha256s

All else follows from the number of the step: see `rng`. Nothing is pickled.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.common.files import atomic_folder, json_bytes, set_aside, sha256_file
from mimicry.study.captions import record_differences
from mimicry.tuning.adapters import METRICS, AdapterFolder
from mimicry.tuning.adapters.checkpoint_facts import (
    ADAPTER,
    PARTS,
    SCHEMA,
    STATE,
    CheckpointFacts,
    choose_checkpoint,
)
from mimicry.tuning.adapters.folder import CHECKPOINT_FACTS as FACTS
from mimicry.tuning.options.config import RESUME_NONE

# A tensor within a state stands in STATE; in FACTS there is its name instead, under this key.
_TENSOR = "tensor"


class Stateful(Protocol):
    """An optimizer, a scheduler, a gradient scaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Checkpoint(CheckpointFacts):
    """A whole checkpoint; its tensors are read when they are asked for."""

    def metrics(self) -> bytes:
        return (self.folder / METRICS).read_bytes()

    def restore(self, parameters: Mapping[str, torch.nn.Parameter], parts: Mapping[str, Stateful]) -> None:
        """Put parameters and states back; raises TrainingFailed where others were saved."""
        try:
            saved, tensors = load_file(self.folder / ADAPTER), load_file(self.folder / STATE)
        except (OSError, SafetensorError) as error:
            raise TrainingFailed(f"{self.folder.name} cannot be read: {error}") from error
        ours, theirs = ({name: value.shape for name, value in some.items()} for some in (parameters, saved))
        if ours != theirs or set(parts) != set(self.facts["states"]):
            raise TrainingFailed(
                f"{self.folder.name} was saved by a trainer with other parts; type "
                f"--resume-from-checkpoint {RESUME_NONE} to start over"
            )
        for name, value in parameters.items():
            value.data.copy_(saved[name])
        for name, part in parts.items():
            part.load_state_dict(unpack(self.facts["states"][name], tensors))


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints in an adapter's folder, for a run of one recipe on one set of images."""

    output_dir: Path
    recipe: Mapping[str, Any]
    images: list[dict[str, Any]]
    limit: int
    class_images: Mapping[str, Any] | None = None

    @property
    def _folder(self) -> AdapterFolder:
        return AdapterFolder(self.output_dir)

    def choose(self, wanted: str) -> tuple[Checkpoint | None, dict[str, str]]:
        """Return the checkpoint to go on from, and why those in its way are not used, by name.

        `wanted` is `RESUME_LATEST`, `RESUME_NONE`, or the path or name of a checkpoint.

        Raises:
            UsageError: the one that was asked for does not fit.
        """
        return choose_checkpoint(self._folder, wanted, Checkpoint.read, self._difference)

    def clear_way(self, unused: Mapping[str, str]) -> None:
        """Set the checkpoints `unused` aside, and remove what killed processes have left half-written."""
        set_aside(self.output_dir, list(unused), "unused")
        self._folder.remove(self._folder.leftovers())

    def save(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        parts: Mapping[str, Stateful],
        facts: Mapping[str, Any],
    ) -> None:
        """Write the checkpoint of `step`, if there is none yet, then remove the oldest ones.

        Raises:
            TrainingFailed: a value is not finite; nothing was written.
            OSError: it cannot be written; nothing is left of it.
        """
        folder = self.output_dir / f"checkpoint-{step}"
        if folder.exists():
            return
        adapter = {name: _copied(value.float()) for name, value in parameters.items()}
        tensors: dict[str, Tensor] = {}
        states = {name: pack(part.state_dict(), name, tensors) for name, part in parts.items()}
        for name, value in {**adapter, **tensors}.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise TrainingFailed(
                    f"after step {step}, {name} is not a finite number: training diverged; type a smaller "
                    f"--learning-rate"
                )
        with atomic_folder(folder) as temporary:
            save_file(adapter, temporary / ADAPTER)
            save_file(tensors, temporary / STATE)
            shutil.copyfile(self.output_dir / METRICS, temporary / METRICS)
            content = {
                "schema": SCHEMA,
                "step": step,
                "recipe": self.recipe,
                "images": self.images,
                "class_images": self.class_images,
                **facts,
                "states": states,
                "sha256": {name: sha256_file(temporary / name) for name in PARTS},
            }
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (temporary / FACTS).write_bytes(json_bytes(text))
        self._remove(self._folder.checkpoint_names()[self.limit :])

    def remove_all(self) -> None:
        self._remove(self._folder.checkpoint_names())

    def _remove(self, names: list[str]) -> None:
        for name in names:
            # First out of sight: a removal that is cut short leaves nothing that looks like a checkpoint.
            hidden = self.output_dir / f".{name}"
            with suppress(OSError):
                (self.output_dir / name).rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def _difference(self, checkpoint: Checkpoint) -> str:
        words: list[str] = []
        if checkpoint.facts["images"] != self.images:
            words += record_differences(checkpoint.facts["images"], self.images)
        if checkpoint.facts.get("class_images") != self.class_images:
            words.append("other class images")
        return checkpoint.other_run(self.recipe, words)


def _copied(value: Tensor) -> Tensor:
    # A copy of its own: a tensor may share its memory with others, which safetensors does not write.
    return value.detach().to("cpu", copy=True).contiguous()


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a state as JSON, its tensors moved to `tensors`; a dict is pairs, as keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[name] = _copied(value)
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
