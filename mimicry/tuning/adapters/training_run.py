"""training_run.json: what is recorded of one training, typed, and with every key that it was read with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import read_json

TRAINING_RUN = "training_run.json"


@dataclass(frozen=True)
class Evaluated:
    """How an evaluation loss was measured: two may be compared only where this is equal.

    `on` tells paintings that are trained on from others, in the words of the record.
    """

    timesteps: tuple[float, ...]
    on: str

    def __str__(self) -> str:
        count, (first, last) = len(self.timesteps), (self.timesteps[0], self.timesteps[-1])
        steps = f"timestep {first:g}" if count == 1 else f"{count} timesteps, {first:g} to {last:g}"
        return f"{steps}, {self.on}"


@dataclass(frozen=True)
class TrainingRun:
    """The record of one training. Any key may be missing: another program or an older version wrote it."""

    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "TrainingRun | None":
        """Read the record at `path`; None when there is none.

        Raises:
            AdapterBroken: it is there and cannot be read.
        """
        try:
            content = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterBroken(f"{path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise AdapterBroken(f"{path} is not a JSON object")
        images = content.get("images", [])
        objects = [content.get("options", {}), content.get("recipe", {})]
        objects += images if isinstance(images, list) else [None]
        if not all(isinstance(value, dict) for value in objects):
            raise AdapterBroken(
                f"{path} was not written by this project: its options, recipe or images are of another kind"
            )
        return cls(content)

    @property
    def status(self) -> str | None:
        """How the training stands: see `mimicry.study.tree.State`."""
        return self._text("status")

    @property
    def error(self) -> str | None:
        return self._text("error")

    @property
    def options(self) -> Mapping[str, Any] | None:
        """The hyper-parameters, by name."""
        return self._object("options")

    @property
    def rank(self) -> int | None:
        """The rank that was asked for."""
        return (self.options or {}).get("rank")

    @property
    def hold_out(self) -> int:
        """How many of the artist's paintings were held out of training."""
        count = (self.options or {}).get("hold_out")
        return count if isinstance(count, int) else 0

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """What defines the adapter beside its images; see `mimicry.tuning.adapters.recipe`."""
        return self._object("recipe")

    @property
    def warnings(self) -> list[str]:
        """What was odd: what the plan said of it, and what the trainer has found."""
        warnings = self.content.get("warnings")
        return [text for text in warnings if isinstance(text, str)] if isinstance(warnings, list) else []

    @property
    def numerics(self) -> Mapping[str, Any] | None:
        return self._object("numerics")

    @property
    def other_numerics(self) -> Mapping[str, Any]:
        """In what the numerics differ from those of sister adapters, by condition."""
        return self._object("other_numerics") or {}

    @property
    def images(self) -> list[dict[str, Any]] | None:
        """The images that were trained on: name, size, sha256, and caption where there were captions."""
        images = self.content.get("images")
        return images if isinstance(images, list) else None

    @property
    def unpaired(self) -> list[str]:
        """In what the images do not pair with the original art, which --allow-unpaired let pass."""
        marks = self.content.get("unpaired")
        return [str(mark) for mark in marks] if isinstance(marks, list) else []

    @property
    def evaluated(self) -> Evaluated | None:
        """How the evaluation loss was measured; None where there is none."""
        facts = self._object("eval_loss") or {}
        timesteps, on = facts.get("timesteps"), facts.get("on")
        if not isinstance(timesteps, list) or not timesteps or not isinstance(on, str):
            return None
        if not all(isinstance(timestep, int | float) for timestep in timesteps):
            return None
        return Evaluated(tuple(map(float, timesteps)), on)

    @property
    def class_images(self) -> Mapping[str, Any] | None:
        return self._object("class_images")

    @property
    def paths(self) -> Mapping[str, Any] | None:
        """Paths of the machine that trained it; they never leave that machine."""
        return self._object("paths")

    @property
    def weights_sha256(self) -> str | None:
        """The sha256 of the weights that the record is about; None while there are none."""
        return (self._object("weights") or {}).get("sha256")

    @property
    def earlier_seconds(self) -> float:
        """What the training took before it was resumed."""
        seconds = self.content.get("earlier_seconds")
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    @property
    def resumed_from(self) -> int | None:
        """The step of the checkpoint that the last attempt went on from."""
        step = self.content.get("resumed_from")
        return step if isinstance(step, int) else None

    @property
    def finished_at(self) -> str | None:
        """When the last attempt ended."""
        return self._text("finished_at")

    @property
    def hub(self) -> Mapping[str, Any]:
        """Where the adapter was uploaded to, or what upload is pending and why."""
        return self._object("hub") or {}

    @property
    def steps(self) -> int:
        steps = self.content.get("steps")
        return steps if isinstance(steps, int) else 0

    def _object(self, key: str) -> Mapping[str, Any] | None:
        value = self.content.get(key)
        return value if isinstance(value, dict) else None

    def _text(self, key: str) -> str | None:
        value = self.content.get(key)
        return value if isinstance(value, str) else None
