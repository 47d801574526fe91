"""One cell of a study and how it is, told from what lies on disk and from its bookmark.

A cell is an adapter that the study is to have, trained or not. What its folder says goes before what the
tracker says. Headers, names and sizes are read; `mimicry verify` reads everything.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from mimicry.common.claims import CLAIM, Lease, claimed_by, read_lease
from mimicry.study import AdapterId, Condition, ImageFolder, Pairing, State
from mimicry.study.cells import CellImages
from mimicry.study.tracker import Bookmarks
from mimicry.tuning.adapters import (
    TRAIN_LOG,
    TRAINING_RUN,
    WEIGHTS,
    AdapterFolder,
    AdapterFormat,
    AdapterSpec,
    AdapterState,
    TrainingRun,
    judge_adapter,
)
from mimicry.tuning.adapters.bookmark import Bookmark
from mimicry.tuning.adapters.checkpoint_facts import CheckpointFacts, NotWholeError
from mimicry.tuning.adapters.place import recorded_elsewhere
from mimicry.tuning.adapters.recipe import recipe_hash, recorded_step_count
from mimicry.tuning.adapters.state import other_class_images
from mimicry.tuning.adapters.training_run import Evaluated
from mimicry.tuning.reports.verify import recorded_spec

# How a training ended that left no adapter, by its record or its bookmark.
_ENDED = (State.FAILED, State.INTERRUPTED, State.BLOCKED)
_GOES_ON = "the next call of apply_tuning takes it up"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell and how it is.

    `worker` is the claim of who works in its folder now. `steps` are optimizer steps, of a training that runs
    those so far, and `step_count` those of a whole training; `checkpoint` is the step of the checkpoint that
    the next training would go on from. `log`, and `job_log` of its job on a cluster, are relative to the data
    root. What is not known is None.
    """

    adapter: AdapterId
    state: State
    reason: str = ""
    worker: Lease | None = None
    steps: int | None = None
    step_count: int | None = None
    checkpoint: int | None = None
    recipe_hash: str | None = None
    seed: int | None = None
    eval_loss: Any = None
    finished_at: str | None = None
    seconds: float | None = None
    owed: str = ""
    log: str | None = None
    job_log: str | None = None

    @property
    def has_data(self) -> bool:
        return self.state is not State.NO_DATA


@dataclass(frozen=True)
class Recorded:
    """What a record says of an adapter that counts in its series: its recipe, and how it was evaluated."""

    adapter: AdapterId
    recipe: Mapping[str, Any]
    class_images: str | None
    evaluated: Evaluated | None


@dataclass
class CellReader:
    """Looks at cells one after the other.

    Attributes:
        form: the format of the stack's adapters.
        bookmarks: those of this step, by key.
        absent: why a condition has no images, for those that nothing was trained in.
        recorded: the recipes of the cells so far that are trained or in training.
    """

    images: CellImages
    form: AdapterFormat
    bookmarks: Bookmarks
    absent: Mapping[Condition, str] = field(default_factory=dict)
    recorded: list[Recorded] = field(default_factory=list)

    def __post_init__(self) -> None:
        # All adapters of a study have the same class images, hundreds of files.
        self._class_images_differ = cache(_class_images_differ)

    def read(self, adapter: AdapterId) -> Cell:
        """Return how a cell is now."""
        folder = AdapterFolder(self.images.tree.adapter_dir(adapter), self.form)
        try:
            names = frozenset(os.listdir(folder.path))  # noqa: PTH208 - it is quick
        except (FileNotFoundError, NotADirectoryError):
            names = frozenset()
        except OSError as error:
            return Cell(
                adapter=adapter,
                state=State.BROKEN,
                reason=f"{folder} cannot be listed: {error.strerror}; get read permission for it",
            )
        lease = read_lease(folder.path) if CLAIM in names else None
        worker = lease if lease is not None and lease.live_holders() else None
        run = folder.readable_run if TRAINING_RUN in names else TrainingRun({})
        pairing = None
        if adapter.condition not in self.absent:
            pairing = self.images.of(adapter.condition, adapter.artist, run.hold_out)
        found = self._state(adapter, folder, names, pairing, run, is_running=worker is not None)
        if WEIGHTS in names or worker is not None:
            self._note_recipe(adapter, run, has_weights=WEIGHTS in names)
        log = None
        if TRAIN_LOG in names:
            log = folder.log.relative_to(self.images.tree.data_root).as_posix()
        cell = Cell(adapter=adapter, state=found.state, reason=found.reason, worker=worker, log=log)
        return _with_steps(_with_record(cell, run), folder, run, pairing)

    def read_recipe(self, adapter: AdapterId) -> None:
        """Note the recipe of an adapter that is not looked at otherwise, if it is trained or in training."""
        folder = AdapterFolder(self.images.tree.adapter_dir(adapter), self.form)
        if folder.has_weights or claimed_by(folder.path):
            self._note_recipe(adapter, folder.readable_run, has_weights=folder.has_weights)

    def _state(
        self,
        adapter: AdapterId,
        folder: AdapterFolder,
        names: frozenset[str],
        pairing: Pairing | None,
        run: TrainingRun,
        *,
        is_running: bool,
    ) -> AdapterState:
        if WEIGHTS in names:
            return self._judged(adapter, folder, pairing, run)
        if is_running:
            return AdapterState(State.RUNNING)
        if pairing is None:
            return AdapterState(State.NO_DATA, self._why_no_data(adapter))
        bookmark = Bookmark.from_json(self.bookmarks.get(adapter.key, {}))
        if TRAINING_RUN in names:
            return _without_weights(run)
        if bookmark.status in (State.FAILED, State.INTERRUPTED, State.BLOCKED):
            return AdapterState(bookmark.status, bookmark.error or "")
        problem = pairing.images.problem()
        if problem is not None:
            return AdapterState(State.BLOCKED, problem)
        if folder.checkpoint_names():
            return AdapterState(State.INTERRUPTED, _GOES_ON)
        if pairing.problem:
            return AdapterState(
                State.BLOCKED,
                f"unpaired: {pairing.problem}; complete the set, or train with --allow-unpaired",
            )
        return AdapterState(State.PENDING, bookmark.note or "")

    def _judged(
        self, adapter: AdapterId, folder: AdapterFolder, pairing: Pairing | None, run: TrainingRun
    ) -> AdapterState:
        """Judge an adapter by its own record."""
        images = ImageFolder(folder.path, ()) if pairing is None else pairing.images
        listed = self.images.listed(adapter.condition, adapter.artist, run.hold_out)
        found = judge_adapter(folder, AdapterSpec(), images, full=False, listed=listed)
        # Weights that another call has just set aside are PENDING.
        if found.state in (State.BROKEN, State.PENDING):
            return found
        words = [found.reason]
        if pairing is None:
            elsewhere = recorded_elsewhere(folder.path, run)
            found = AdapterState(State.STALE if elsewhere else State.COMPLETE)
            words = [elsewhere or "its images are not there to compare with"]
        spec = recorded_spec(run)
        if spec.class_images is not None and self._class_images_differ(spec, _listing(run)):
            found = AdapterState(State.STALE)
            words.append("other class images")
        return AdapterState(found.state, ", ".join(filter(None, words)))

    def _why_no_data(self, adapter: AdapterId) -> str:
        reason = self.absent.get(adapter.condition)
        if reason is not None:
            return reason
        source = self.images.source(adapter.condition)
        if source is None:
            return f"there is no folder of images for {adapter.condition}"
        return f"there are no images in {self.images.tree.images_of(source.root, adapter.artist)}"

    def _note_recipe(self, adapter: AdapterId, run: TrainingRun, *, has_weights: bool) -> None:
        # Weights without their sha256 are those of another training than the record is about.
        if run.recipe and not (has_weights and run.weights_sha256 is None):
            self.recorded.append(Recorded(adapter, run.recipe, _listing(run), run.evaluated))


def _without_weights(run: TrainingRun) -> AdapterState:
    """Return how a training stands that has a record, no adapter, and nobody who works on it."""
    if run.status in _ENDED:
        return AdapterState(State(run.status), run.error or "")
    if run.status == State.RUNNING:
        return AdapterState(State.INTERRUPTED, f"it was ended without a chance to say so; {_GOES_ON}")
    if run.status == State.COMPLETE:
        return AdapterState(State.INTERRUPTED, f"its weights are gone; {_GOES_ON}")
    return AdapterState(State.INTERRUPTED, _GOES_ON)


def _with_record(cell: Cell, run: TrainingRun) -> Cell:
    """Return a cell with what its record tells."""
    recipe_id = run.content.get("recipe_hash")
    if not isinstance(recipe_id, str):
        recipe_id = recipe_hash(run.recipe) if run.recipe else None
    seed, seconds = (run.options or {}).get("seed"), run.content.get("seconds")
    return replace(
        cell,
        steps=run.steps or None,
        recipe_hash=recipe_id,
        seed=seed if isinstance(seed, int) else None,
        eval_loss=run.content.get("eval_loss"),
        finished_at=run.finished_at,
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        owed=str(run.hub.get("error", "unknown")) if "owed" in run.hub else "",
    )


def _with_steps(cell: Cell, folder: AdapterFolder, run: TrainingRun, pairing: Pairing | None) -> Cell:
    """Return the cell of a training that runs, or has stopped, with the steps that it has taken."""
    if cell.state is not State.RUNNING and cell.state not in _ENDED:
        return cell
    image_count = 0 if pairing is None else len(pairing.images.names)
    cell = replace(cell, step_count=recorded_step_count(run.options, image_count))
    if cell.state is State.RUNNING:
        return replace(cell, steps=folder.last_step())
    return replace(cell, checkpoint=_waiting_checkpoint(folder))


def _waiting_checkpoint(folder: AdapterFolder) -> int | None:
    """Return the step of the newest whole checkpoint of our own trainer; None when there is none."""
    for name in folder.checkpoint_names():
        try:
            return CheckpointFacts.glance(folder.path / name).step
        except NotWholeError:
            continue
    return None


def _listing(run: TrainingRun) -> str | None:
    listing = (run.class_images or {}).get("listing_sha256")
    return listing if isinstance(listing, str) else None


def _class_images_differ(spec: AdapterSpec, listing: str | None) -> bool:
    assert spec.class_images is not None
    known = None if listing is None else {"listing_sha256": listing}
    return other_class_images(known, spec.class_images, full=False)
