"""The bookmark of an adapter in the progress tracker: the only place that knows its keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.adapters.training_run import TrainingRun


@dataclass(frozen=True, kw_only=True)
class Bookmark:
    """What a bookmark says, or what is to be merged into one.

    Attributes:
        status: None where the tracker says nothing, or a word that is not a state.
        seconds: of the whole training, earlier attempts included.
        images: how many there were to train on.
        loss: the mean training loss.
        eval_loss: as in the record.
        other_numerics: how the numerics differ from those of sister adapters, by condition.
        unpaired: how the images do not pair with the original art.
        hub: where the adapter was uploaded to, or which upload is owed and why.
        log: the file's path relative to the data root.
        note: what happened to the adapter that was there before.
        overwrite: the mark of an --overwrite; see `mimicry.tuning.planning.overwriting`.
        named: the fields that were read, or are to be written, in the order of the file. A field that is
            named and None is to be removed; one that is not named stays as it is.
    """

    status: State | None = None
    started_at: str | None = None
    seconds: float | None = None
    images: int | None = None
    steps: int | None = None
    loss: float | None = None
    eval_loss: Any = None
    other_numerics: Mapping[str, Any] | None = None
    unpaired: list[str] | None = None
    recipe_hash: str | None = None
    resumed_from: int | None = None
    hub: Mapping[str, Any] | None = None
    log: str | None = None
    error: str | None = None
    note: str | None = None
    overwrite: Mapping[str, Any] | None = None
    updated_at: str | None = None
    named: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Bookmark":
        """Read a bookmark; values of another type count as missing, and unknown keys are passed over."""
        values = {name: read(content[name]) for name, read in _READ.items() if name in content}
        return cls(**values, named=tuple(name for name in content if name in _READ))

    @classmethod
    def waiting(cls, images: int) -> "Bookmark":
        """Return the bookmark of an adapter before its training.

        What a former training left in it would be taken for news of the one to come.
        """
        former = dict.fromkeys((*_OF_RECORD, "error"))
        return cls().with_fields(**{**former, "status": State.PENDING, "images": images})

    @classmethod
    def ended(cls, state: State, **facts: Any) -> "Bookmark":
        """Return the bookmark of a training that left no adapter; `facts` are its other fields."""
        return cls().with_fields(status=state, **facts)

    @classmethod
    def complete(cls, run: TrainingRun, *, log: str | None) -> "Bookmark":
        """Return the bookmark of a complete adapter, by the record of its training."""
        record = {
            **run.content,
            "images": None if run.images is None else len(run.images),
            "loss": run.content.get("mean_loss"),
            "other_numerics": run.other_numerics or None,
            "unpaired": run.unpaired or None,
        }
        facts = {name: _READ[name](record.get(name)) for name in _OF_RECORD}
        return cls().with_fields(status=State.COMPLETE, **facts, log=log, error=None, note=None)

    def with_fields(self, **values: Any) -> "Bookmark":
        """Return the bookmark with these fields written as well."""
        return replace(self, **values, named=tuple(dict.fromkeys((*self.named, *values))))

    def to_json(self) -> dict[str, Any]:
        """Return the named fields, for `ProgressTracker.record`."""
        return {name: getattr(self, name) for name in self.named}


def read_bookmarks(tracker: ProgressTracker) -> dict[str, Bookmark]:
    """Return the bookmarks of the tracker's step by key.

    Raises:
        MimicryError: the tracker exists and cannot be read.
    """
    return {key: Bookmark.from_json(content) for key, content in tracker.bookmarks().items()}


def _state(value: Any) -> State | None:
    try:
        return State(value)
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    if value in ("nan", "inf", "-inf"):  # as the tracker and the record write them
        return float(value)
    return value if isinstance(value, int | float) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _object(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


def _texts(value: Any) -> list[str] | None:
    return [str(text) for text in value] if isinstance(value, list) else None


_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("started_at", "recipe_hash", "log", "error", "note", "updated_at"), _text),
    **dict.fromkeys(("images", "steps", "resumed_from"), _count),
    **dict.fromkeys(("seconds", "loss"), _number),
    **dict.fromkeys(("other_numerics", "hub", "overwrite"), _object),
    "status": _state,
    "unpaired": _texts,
    "eval_loss": lambda value: value,
}
# What a complete adapter's bookmark takes from the record, in the order of the file.
_OF_RECORD = (
    *("started_at", "seconds", "images", "steps", "loss", "eval_loss", "other_numerics", "unpaired"),
    *("recipe_hash", "resumed_from", "hub"),
)
