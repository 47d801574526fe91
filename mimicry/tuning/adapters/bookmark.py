"""The bookmark of an adapter in the study's progress tracker; no other module knows its keys."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mimicry.common.errors import MimicryError
from mimicry.study import (
    ALL,
    AdapterId,
    Bookmarks,
    CellFilter,
    CellImages,
    Matrix,
    ProgressTracker,
    Selection,
    State,
    StudyTree,
    series_name,
)
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.training_run import TrainingRun, object_or_none, text_or_none
from mimicry.tuning.options.study_file import StudyFile, planned_variants

STEP = "step_3_fine_tune_sd35"
# A key that no adapter has: while the study cannot be read, the step is not complete.
_UNKNOWN = ""


@dataclass(frozen=True, kw_only=True)
class Bookmark:
    """What a bookmark says, or what is to be merged into one.

    `named` are the fields that were read or are to be written, in this order; None removes one. `status` is
    None for a word that is no state. `seconds` are those of all attempts, `images` a count, `log` is relative
    to the data root, and `note` says what happened to an adapter that was there before.
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
        """Return the bookmark of an adapter before its training, without news of a former one."""
        former = dict.fromkeys((*_OF_RECORD, "error"))
        return cls().with_fields(**{**former, "status": State.WAITING, "images": images})

    @classmethod
    def ended(cls, state: State, **facts: Any) -> "Bookmark":
        return cls().with_fields(status=state, **facts)

    @classmethod
    def complete(cls, run: TrainingRun, *, log: str | None) -> "Bookmark":
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
        return replace(self, **values, named=tuple(dict.fromkeys((*self.named, *values))))

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.named}


def read_bookmarks(tracker: ProgressTracker) -> dict[str, Bookmark]:
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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _texts(value: Any) -> list[str] | None:
    return [str(text) for text in value] if isinstance(value, list) else None


_READ: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("started_at", "recipe_hash", "log", "error", "note", "updated_at"), text_or_none),
    **dict.fromkeys(("images", "steps", "resumed_from"), _count),
    **dict.fromkeys(("seconds", "loss"), _number),
    **dict.fromkeys(("other_numerics", "hub", "overwrite"), object_or_none),
    "status": _state,
    "unpaired": _texts,
    "eval_loss": lambda value: value,
}
# What a complete adapter's bookmark takes from the record, in the order of the file.
_OF_RECORD = (
    *("started_at", "seconds", "images", "steps", "loss", "eval_loss", "other_numerics", "unpaired"),
    *("recipe_hash", "resumed_from", "hub"),
)


def open_tracker(tree: StudyTree) -> ProgressTracker:
    return ProgressTracker(
        tree.tracker,
        step=STEP,
        data_root=tree.data_root,
        rebuild=lambda: rebuilt_bookmarks(tree),
        expected=lambda: _expected_keys(tree),
    )


def _expected_keys(tree: StudyTree) -> Collection[str]:
    """Return the keys of all cells with images that the study.toml in the tree names, in all known series."""
    # What a training has made is recorded, even if nothing can be said of the images just now.
    try:
        study_file = StudyFile.from_tree(tree)
        planned = planned_variants(study_file)
        study = study_file.study
        chosen = CellFilter(
            protections=study.get("protections", (ALL,)),
            countermeasures=study.get("countermeasures", (ALL,)),
            selection=Selection(
                splits=study.get("splits", ()),
                styles=study.get("styles", ()),
                artists=study.get("artists", ()),
                pilot=study.get("pilot", False),
            ),
        )
        series = {
            series_name(stack, each): None
            for stack in tree.stacks()
            for each in (*planned, *tree.variants(stack))
        }
        images = CellImages(tree)
        return {cell.key for cell in Matrix.choose(images, {}, list(series), chosen).with_images(images)}
    except MimicryError:
        return (_UNKNOWN,)


def log_path(tree: StudyTree, folder: AdapterFolder) -> str:
    """Return where an artist's log is, relative to the data root, which may move."""
    return folder.log.relative_to(tree.data_root).as_posix()


def complete_bookmark(tree: StudyTree, folder: AdapterFolder) -> Bookmark:
    return Bookmark.complete(folder.readable_run, log=log_path(tree, folder) if folder.log.exists() else None)


def record_adapter(tree: StudyTree, output_dir: Path) -> None:
    """Record how the adapter in `output_dir`, which no plan has asked for, is in the tracker."""
    adapter = AdapterId.parse(output_dir)
    assert adapter is not None  # it lies in the tree
    folder, tracker = AdapterFolder(tree.adapter_dir(adapter)), open_tracker(tree)
    run = folder.readable_run
    if folder.has_weights:
        tracker.record(adapter.key, **complete_bookmark(tree, folder).to_json())
    elif run.status in (State.FAILED, State.INTERRUPTED, State.BLOCKED):
        mark = Bookmark.ended(State(run.status), error=run.error, steps=run.steps, log=log_path(tree, folder))
        tracker.record(adapter.key, **mark.to_json())


def rebuilt_bookmarks(tree: StudyTree) -> Bookmarks:
    """Return the bookmarks of every adapter on disk, for a tracker that was lost."""
    found: Bookmarks = {}
    for adapter in tree.adapters():
        folder = AdapterFolder(tree.adapter_dir(adapter))
        if folder.has_weights:
            fields = complete_bookmark(tree, folder).to_json()
            found[adapter.key] = {name: value for name, value in fields.items() if value is not None}
    return found
