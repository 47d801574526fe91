"""training_run.json: what is recorded of one training. No other module writes down its keys.

`TrainingRun` reads a record, whoever wrote it. The fields of the sections are its keys, in their order.
"""

import platform
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import mimicry
from mimicry.common.environment import versions
from mimicry.common.errors import AdapterBroken
from mimicry.common.files import read_json
from mimicry.tuning.adapters.recipe import recipe, recipe_hash
from mimicry.tuning.options.config import RESUME_LATEST, RESUME_NONE, TuningConfig

TRAINING_RUN = "training_run.json"

Read = TypeVar("Read")
# A field with this value is no key of the record.
LEFT_OUT: Any = object()


@dataclass(frozen=True)
class Evaluated:
    """How an evaluation loss was measured: two may be compared only where this is equal."""

    timesteps: tuple[float, ...]
    on: str

    def __str__(self) -> str:
        count, (first, last) = len(self.timesteps), (self.timesteps[0], self.timesteps[-1])
        steps = f"timestep {first:g}" if count == 1 else f"{count} timesteps, {first:g} to {last:g}"
        return f"{steps}, {self.on}"


class _Key(Generic[Read]):
    """A key of the record, named like the attribute; `convert` is given None where the key is missing."""

    def __init__(self, convert: Callable[[Any], Read]) -> None:
        self._convert = convert

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, run: None, owner: type) -> "_Key[Read]": ...
    @overload
    def __get__(self, run: "TrainingRun", owner: type) -> Read: ...
    def __get__(self, run: "TrainingRun | None", owner: type) -> "_Key[Read] | Read":
        return self if run is None else self._convert(run.content.get(self._name))


def text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def object_or_none(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


def _object_or_empty(value: Any) -> Mapping[str, Any]:
    return object_or_none(value) or {}


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _marks(value: Any) -> list[str]:
    return [str(mark) for mark in value] if isinstance(value, list) else []


def _records(value: Any) -> list[dict[str, Any]] | None:
    return value if isinstance(value, list) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object at `path`; None without a file, AdapterBroken when it is none."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterBroken(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise AdapterBroken(f"{path} is not a JSON object")
    return content


@dataclass(frozen=True)
class TrainingRun:
    """The record of one training. Any key may be missing: another program or an older version wrote it."""

    content: Mapping[str, Any]

    # How the training stands (see `mimicry.study.tree.State`), and why it ended.
    status = _Key(text_or_none)
    error = _Key(text_or_none)
    # The hyper-parameters, by name.
    options = _Key(object_or_none)
    # What defines the adapter apart from its images, see `mimicry.tuning.adapters.recipe`; and its hash.
    recipe = _Key(object_or_none)
    recipe_hash = _Key(text_or_none)
    # What was odd: what the plan said of it, and what the trainer has found.
    warnings = _Key(_texts)
    numerics = _Key(object_or_none)
    # How the numerics differ from those of sister adapters, by condition.
    other_numerics = _Key(_object_or_empty)
    # The images that were trained on: name, size, sha256, and caption where there were captions.
    images = _Key(_records)
    # How the images do not pair with the original art, which --allow-unpaired let pass.
    unpaired = _Key(_marks)
    class_images = _Key(object_or_none)
    # Paths of the machine that trained it; they never leave that machine.
    paths = _Key(object_or_none)
    started_at = _Key(text_or_none)
    # When the last attempt ended.
    finished_at = _Key(text_or_none)
    # What the training took, over all attempts; and before it was resumed.
    seconds = _Key(_number)
    earlier_seconds = _Key(lambda value: float(_number(value) or 0.0))
    # The step of the checkpoint that the last attempt went on from.
    resumed_from = _Key(_whole)
    steps = _Key(lambda value: _whole(value) or 0)
    peak_memory_bytes = _Key(_number)
    final_loss = _Key(_number)
    mean_loss = _Key(_number)
    # The losses on the evaluation set, with what they were measured on; or why there are none.
    eval_loss = _Key(object_or_none)
    # Where the adapter was uploaded to, or what upload is pending and why.
    hub = _Key(_object_or_empty)
    # The name of a stack that writes no record of its own.
    stack = _Key(text_or_none)

    @classmethod
    def read(cls, path: Path) -> "TrainingRun | None":
        """Read the record at `path`; None when there is none, AdapterBroken when it cannot be read."""
        content = read_object(path)
        if content is None:
            return None
        images = content.get("images", [])
        objects = [content.get("options", {}), content.get("recipe", {})]
        objects += images if isinstance(images, list) else [None]
        if not all(isinstance(value, dict) for value in objects):
            raise AdapterBroken(
                f"{path} was not written by this project: its options, recipe or images are of another kind"
            )
        return cls(content)

    @property
    def rank(self) -> int | None:
        return (self.options or {}).get("rank")

    @property
    def hold_out(self) -> int:
        """How many of the artist's paintings were held out of training."""
        count = (self.options or {}).get("hold_out")
        return count if isinstance(count, int) else 0

    @property
    def device(self) -> str | None:
        return text_or_none((self.numerics or {}).get("device"))

    @property
    def class_image_listing(self) -> str | None:
        return text_or_none((self.class_images or {}).get("listing_sha256"))

    @property
    def weights_sha256(self) -> str | None:
        """The sha256 of the weights that the record is about; None while there are none."""
        return _object_or_empty(self.content.get("weights")).get("sha256")

    @property
    def evaluated(self) -> Evaluated | None:
        facts = self.eval_loss or {}
        timesteps, on = facts.get("timesteps"), facts.get("on")
        if not isinstance(timesteps, list) or not timesteps or not isinstance(on, str):
            return None
        if not all(isinstance(timestep, int | float) for timestep in timesteps):
            return None
        return Evaluated(tuple(map(float, timesteps)), on)

    def ended(self, status: str, error: str, finished_at: str) -> dict[str, Any]:
        return {**self.content, "status": status, "error": error, "finished_at": finished_at}


class Section:
    """A part of a record as it is written: a dataclass, whose fields are keys and may hold sections again."""

    def content(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        return {
            name: value.content() if isinstance(value, Section) else value
            for name, value in values.items()
            if value is not LEFT_OUT
        }


def joined(*sections: Section) -> dict[str, Any]:
    return {name: value for section in sections for name, value in section.content().items()}


@dataclass(kw_only=True)
class Trained(Section):
    """What is trained, and on what: all that is known before it begins, but for the numerics."""

    schema: int = 1
    recipe: dict[str, Any]
    recipe_hash: str
    options: dict[str, Any]
    base_model: dict[str, Any]
    command: list[str]
    paths: dict[str, str | None]
    host: dict[str, str]
    versions: dict[str, Any]
    warnings: list[str]
    held_out: list[str] = LEFT_OUT
    # As `mimicry.study.image_sets.described_images` returns them.
    images: list[Any] = field(default_factory=list)
    unpaired: list[str] = field(default_factory=list)
    class_images: Mapping[str, Any] = LEFT_OUT

    @classmethod
    def describe(
        cls,
        config: TuningConfig,
        base_model: Mapping[str, str | None],
        base_model_folder: Path,
        *,
        trainer: str,
        command: Iterable[str],
        notes: Iterable[str],
    ) -> "Trained":
        """Return what is known of a training without its images; `paths`, `command`, `host` are private.

        `base_model` is its identity, with its `name` on the Hub or None; `notes` are the first warnings.
        """
        used = recipe(config, base_model, trainer)
        name, resume = config.pretrained_model_name_or_path, config.resume_from_checkpoint
        machine_paths = {
            "cache_dir": config.cache_dir,
            "prompt_cache_dir": config.prompt_cache_dir,
            "logging_dir": config.logging_dir,
            "class_data_dir": config.class_data_dir,
        }
        return cls(
            recipe=used,
            recipe_hash=recipe_hash(used),
            options=asdict(config)
            | {"pretrained_model_name_or_path": None if base_model["name"] is None else name}
            | dict.fromkeys(machine_paths)
            | {"resume_from_checkpoint": resume if resume in (RESUME_LATEST, RESUME_NONE) else None},
            base_model={"name": base_model["name"], "revision": base_model.get("revision"), **base_model},
            command=list(command),
            paths={
                "base_model": str(base_model_folder),
                "pretrained_model_name_or_path": name,
                **machine_paths,
            },
            host={"name": socket.gethostname(), "platform": platform.platform()},
            versions=versions(mimicry),
            warnings=list(notes),
        )


@dataclass(kw_only=True)
class Memory(Section):
    """How memory was saved, which changes no bit of the adapter."""

    conditioning_table: bool = LEFT_OUT
    checkpointed_blocks: int = LEFT_OUT


@dataclass(kw_only=True)
class Numerics(Section):
    """What may change the last bits of an adapter, how it fitted into memory, how its sisters were made."""

    numerics: dict[str, Any]
    memory: Memory = field(default_factory=Memory)
    other_numerics: dict[str, list[str]] = field(default_factory=dict)


@dataclass(kw_only=True)
class LaterClassImages(Section):
    """The class images, where they were not known before the training."""

    class_images: Mapping[str, Any]


@dataclass(kw_only=True)
class Progress(Section):
    """How far the training is; another script says little of it."""

    status: str
    started_at: str
    finished_at: str | None
    seconds: float = LEFT_OUT
    stage_seconds: dict[str, float] = LEFT_OUT
    steps: int
    resumed_from: int | None = LEFT_OUT
    earlier_seconds: float = LEFT_OUT
    loss_spikes: list[dict[str, float]] = LEFT_OUT
    peak_memory_bytes: int = LEFT_OUT


@dataclass(kw_only=True)
class EvalLoss(Section):
    """The loss on the evaluation set before and after training, or the reason why it was `skipped`."""

    start: float | None = LEFT_OUT
    end: float | None = LEFT_OUT
    on: str = LEFT_OUT
    images: int = LEFT_OUT
    timesteps: list[float] = LEFT_OUT
    skipped: str = LEFT_OUT


@dataclass(kw_only=True)
class Evaluation(Section):
    eval_loss: EvalLoss


@dataclass(kw_only=True)
class Result(Section):
    """What is known once the last step was taken."""

    final_loss: float
    mean_loss: float
    draws_sha256: str


@dataclass(kw_only=True)
class Failure(Section):
    error: str


@dataclass(kw_only=True)
class Published(Section):
    """What the weights are that the record is about, see `mimicry.tuning.adapters.weights.Adapter`."""

    weights: dict[str, Any]
