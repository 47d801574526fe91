"""How a cell of a study is: the one place that tells it, from its folder, its images and its bookmark.

Plan, status, verification, upload, samples and report all ask here, and differ only in what they do with the
answer. What lies in the folder goes before what the tracker says.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mimicry.common.claims import CLAIM, Lease, read_lease
from mimicry.study import (
    AdapterId,
    Bookmarks,
    Captions,
    CellImages,
    Condition,
    Pairing,
    State,
    StudyTree,
    hold_out_problem,
)
from mimicry.tuning.adapters.bookmark import Bookmark
from mimicry.tuning.adapters.checkpoint_facts import CheckpointFacts, NotWholeError
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.judge import (
    AdapterSpec,
    AdapterState,
    judge_adapter,
    other_class_images,
    recorded_elsewhere,
    recorded_spec,
)
from mimicry.tuning.adapters.recipe import recipe_hash, recorded_step_count
from mimicry.tuning.adapters.training_run import TRAINING_RUN, TrainingRun
from mimicry.tuning.adapters.weights import ANY_LORA, AdapterFormat

# How a training ended that left no adapter, by its record or its bookmark.
_ENDED = (State.FAILED, State.INTERRUPTED, State.BLOCKED)
# States in which the next call of apply_tuning trains a cell.
TO_TRAIN = (State.WAITING, State.INTERRUPTED, State.FAILED, State.BROKEN)
_GOES_ON = "the next call of apply_tuning takes it up"
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """What the queue of an engine holds for an adapter; `state` and `reason` are the queue's own words.

    Attributes:
        name: what it has in common with the jobs that were submitted with it.
        recipe: the hash of the recipe that it was submitted with; None for a stack without options.
        output: the file that it prints into, in the folder of the queue.
    """

    engine: str
    name: str
    id: str
    state: str
    reason: str = ""
    node: str = ""
    is_live: bool
    runs: bool
    is_stuck: bool
    was_cancelled: bool
    recipe: str | None = None
    how_to_cancel: str
    remedy: str
    output: str

    def log(self, tree: StudyTree) -> Path:
        """Return the file that it prints into."""
        return tree.queue(self.engine) / self.output

    def __str__(self) -> str:
        words = f"job {self.id} is {self.state}"
        if self.runs and self.node:
            return f"{words} on {self.node}"
        return f"{words} ({self.reason})" if self.reason else words


@dataclass(frozen=True, kw_only=True)
class AdapterStatus:
    """A cell and how it is. What is not known is None.

    `weights` is how the weights in its folder are, None without any: they may be whole while the cell waits
    to be trained again. `repair` says what is wrong with an adapter that needs no training, but a repair.
    `other_images` says how its images differ from those that it was trained on. `holder` is the claim of who
    works in its folder now, and `job` what is in a queue for it. `steps` are optimizer steps, of a running
    training those so far; `step_count` those of a whole training; `checkpoint` is the step of the newest
    whole checkpoint, and `checkpoint_recipe` the recipe that it belongs to. `log`, and `job_log` of its job,
    are relative to the data root.
    """

    adapter: AdapterId
    state: State
    reason: str = ""
    run: TrainingRun = field(default_factory=lambda: TrainingRun({}))
    weights: State | None = None
    repair: str = ""
    other_images: str = ""
    holder: Lease | None = None
    job: QueuedJob | None = None
    steps: int | None = None
    step_count: int | None = None
    checkpoint: int | None = None
    checkpoint_recipe: Mapping[str, Any] | None = None
    log: str | None = None
    job_log: str | None = None

    @property
    def has_data(self) -> bool:
        return self.state is not State.NO_DATA

    @property
    def has_adapter(self) -> bool:
        """Whether there are whole weights: as asked for, or of another recipe or other images."""
        return self.state.has_adapter

    @property
    def recipe_hash(self) -> str | None:
        return self.run.recipe_hash or (recipe_hash(self.run.recipe) if self.run.recipe else None)

    @property
    def seed(self) -> int | None:
        seed = (self.run.options or {}).get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def seconds(self) -> float | None:
        """What the training took, in seconds."""
        return self.run.seconds

    @property
    def owed(self) -> str:
        """Why the adapter is not on the Hub, though it should be; empty otherwise."""
        return str(self.run.hub.get("error", "unknown")) if "owed" in self.run.hub else ""

    def to_json(self) -> dict[str, Any]:
        """Return the cell as all commands show it to programs."""
        adapter, run = self.adapter, self.run
        return {
            "key": adapter.key,
            "variant": adapter.variant,
            "protection": adapter.condition.protection,
            "countermeasure": adapter.condition.countermeasure,
            "split": adapter.artist.split,
            "style": adapter.artist.style,
            "artist": adapter.artist.name,
            "state": self.state.value,
            "reason": self.reason,
            "steps": self.steps,
            "step_count": self.step_count,
            "checkpoint": self.checkpoint,
            "recipe_hash": self.recipe_hash,
            "seed": self.seed,
            "eval_loss": run.content.get("eval_loss"),
            "finished_at": run.finished_at,
            "seconds": self.seconds,
            "host": None if self.holder is None else self.holder.host,
            "since": None if self.holder is None else self.holder.since,
            "upload_owed": self.owed or None,
            "log": self.log,
            "job_log": self.job_log,
        }


@dataclass
class Inspector:
    """Looks at cells, at headers or in full; see `judge_adapter`.

    Attributes:
        specs: what adapters should be, by series; without one, their own record says it.
        absent: why a condition has no images, for those in which nothing was trained.
        full: read every value and every image; with `anew`, trust nothing that is remembered.
    """

    images: CellImages
    form: AdapterFormat = ANY_LORA
    bookmarks: Bookmarks = field(default_factory=dict)
    specs: Mapping[str, AdapterSpec] = field(default_factory=dict)
    queue: Mapping[str, QueuedJob] = field(default_factory=dict)
    absent: Mapping[Condition, str] = field(default_factory=dict)
    full: bool = False
    anew: bool = False

    def __post_init__(self) -> None:
        # All adapters of a study have the same class images, hundreds of files.
        self._class_images_differ = cache(_class_images_differ)

    def look_at(self, adapters: Iterable[AdapterId]) -> list[AdapterStatus]:
        """Return how each of the cells is now."""
        if not self.full:
            return [self.look(adapter) for adapter in adapters]
        # Reading and hashing leave Python free for other threads.
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.look, adapters))

    def look(self, adapter: AdapterId) -> AdapterStatus:
        """Return how a cell is now."""
        tree = self.images.tree
        folder = AdapterFolder(tree.adapter_dir(adapter), self.form)
        try:
            names = frozenset(os.listdir(folder.path))  # noqa: PTH208 - it is quick
        except (FileNotFoundError, NotADirectoryError):
            names = frozenset()
        except OSError as error:
            reason = f"{folder} cannot be listed: {error.strerror}; get read permission for it"
            return AdapterStatus(adapter=adapter, state=State.BROKEN, reason=reason)
        lease = read_lease(folder.path) if CLAIM in names else None
        job = self.queue.get(adapter.key)
        job = job if job is not None and job.is_live else None
        status = AdapterStatus(
            adapter=adapter,
            state=State.WAITING,
            run=folder.readable_run if TRAINING_RUN in names else TrainingRun({}),
            holder=lease if lease is not None and lease.live_holders() else None,
            job=job,
            log=_relative(tree, folder.log) if TRAIN_LOG in names else None,
            job_log=None if job is None else _relative(tree, job.log(tree)),
        )
        pairing = self._pairing(status)
        if WEIGHTS in names:
            status = self._with_weights(status, folder, pairing)
        # Weights that another call has just set aside are gone.
        if status.weights is None:
            state, reason = self._without_weights(status, folder, names, pairing)
            status = replace(status, state=state, reason=reason)
        if job is not None and status.state in (State.RUNNING, *TO_TRAIN):
            state = State.RUNNING if status.state is State.RUNNING else State.QUEUED
            status = replace(status, state=state, reason=str(job))
        return _with_steps(status, folder, 0 if pairing is None else len(pairing.images.names))

    def _hold_out(self, status: AdapterStatus) -> int:
        if status.run.options is not None:
            return status.run.hold_out
        spec = self.specs.get(status.adapter.series)
        options = {} if spec is None or spec.recipe is None else spec.recipe["options"]
        return int(options.get("hold_out", 0))

    def _pairing(self, status: AdapterStatus) -> Pairing | None:
        adapter = status.adapter
        if adapter.condition in self.absent:
            return None
        return self.images.of(adapter.condition, adapter.artist, self._hold_out(status))

    def _with_weights(
        self, status: AdapterStatus, folder: AdapterFolder, pairing: Pairing | None
    ) -> AdapterStatus:
        adapter, run = status.adapter, status.run
        images = None if pairing is None or pairing.images.fault else pairing.images
        captions = listing = None
        if images is not None and _has_captions(run):
            captions = Captions.read(images, self.images.original(adapter.artist))
        if images is not None and not self.full:
            listing = self.images.listing(adapter.condition, adapter.artist, self._hold_out(status))
        asked = self.specs.get(adapter.series, AdapterSpec())
        found = judge_adapter(
            folder,
            replace(asked, class_images=None),
            images,
            captions=captions,
            full=self.full,
            anew=self.anew,
            listing=listing,
        )
        if found.state is State.WAITING:
            return status
        if found.state is not State.BROKEN:
            found = self._judged_further(found, folder, run, asked, images_are_known=images is not None)
            fault = folder.config_fault()
            if fault:
                return replace(status, state=State.BROKEN, reason=fault, weights=found.state, repair=fault)
        return replace(
            status,
            state=found.state,
            reason=found.reason,
            weights=found.state,
            other_images=found.other_images,
        )

    def _judged_further(
        self,
        found: AdapterState,
        folder: AdapterFolder,
        run: TrainingRun,
        asked: AdapterSpec,
        *,
        images_are_known: bool,
    ) -> AdapterState:
        """Return the judgement with what class images, and images that are not there, say of it."""
        state, reasons, others = found.state, [found.reason], found.other_images
        if not images_are_known and run.images is not None:
            others = recorded_elsewhere(folder.path, run)
            state = State.STALE if others else state
            reasons.append(others or "its images are not there to compare with")
        class_images = asked.class_images or recorded_spec(run).class_images
        if class_images is not None and self._class_images_differ(
            AdapterSpec(class_images=class_images), _json_of(run.class_images), self.full
        ):
            state = State.STALE
            reasons.append("other class images")
        return AdapterState(state, ", ".join(filter(None, reasons)), others)

    def _without_weights(
        self, status: AdapterStatus, folder: AdapterFolder, names: frozenset[str], pairing: Pairing | None
    ) -> tuple[State, str]:
        adapter, run = status.adapter, status.run
        if status.holder is not None:
            return State.RUNNING, status.holder.description()
        if pairing is None:
            return State.NO_DATA, self._why_no_data(adapter)
        problem = self._image_problem(status, pairing)
        if problem:
            return State.BLOCKED, problem
        if TRAINING_RUN in names:
            return _ended(run)
        bookmark = Bookmark.from_json(self.bookmarks.get(adapter.key, {}))
        if bookmark.status in _ENDED:
            return bookmark.status, bookmark.error or ""
        if folder.checkpoint_names():
            return State.INTERRUPTED, _GOES_ON
        return State.WAITING, f"its old adapter was {bookmark.note}" if bookmark.note else ""

    def _image_problem(self, status: AdapterStatus, pairing: Pairing) -> str:
        adapter, hold_out = status.adapter, self._hold_out(status)
        whole = self.images.whole(adapter.condition, adapter.artist) or pairing
        problem = whole.images.problem() or hold_out_problem(
            self.images.original(adapter.artist), pairing.images, hold_out
        )
        if problem:
            return problem
        # What was begun with --allow-unpaired is marked in its record.
        if pairing.problem and not status.run.unpaired:
            return f"unpaired: {pairing.problem}; complete the set, or use {ALLOW_UNPAIRED}"
        return ""

    def _why_no_data(self, adapter: AdapterId) -> str:
        reason = self.absent.get(adapter.condition)
        if reason is not None:
            return reason
        source = self.images.source(adapter.condition)
        if source is None:
            return f"there is no folder of images for {adapter.condition}"
        return f"there are no images in {self.images.tree.images_of(source.root, adapter.artist)}"


ALLOW_UNPAIRED = "--allow-unpaired, which marks its adapter as unpaired for good"


def _has_captions(run: TrainingRun) -> bool:
    recipe = (run.recipe or {}).get("options")
    return any(options.get("captions") for options in (run.options or {}, recipe or {}))


def _ended(run: TrainingRun) -> tuple[State, str]:
    if run.status in _ENDED:
        return State(run.status), run.error or ""
    if run.status == State.RUNNING:
        return State.INTERRUPTED, f"it was ended without a chance to say so; {_GOES_ON}"
    if run.status == State.COMPLETE:
        return State.INTERRUPTED, f"its weights are gone; {_GOES_ON}"
    return State.INTERRUPTED, _GOES_ON


def _with_steps(status: AdapterStatus, folder: AdapterFolder, image_count: int) -> AdapterStatus:
    run = status.run
    status = replace(status, steps=run.steps or None)
    if status.state is not State.RUNNING and status.state not in _ENDED:
        return status
    status = replace(status, step_count=recorded_step_count(run.options, image_count))
    if status.state is State.RUNNING:
        return replace(status, steps=folder.last_step())
    checkpoint = _newest_checkpoint(folder)
    if checkpoint is None:
        return status
    return replace(status, checkpoint=checkpoint.step, checkpoint_recipe=checkpoint.facts.get("recipe"))


def _newest_checkpoint(folder: AdapterFolder) -> CheckpointFacts | None:
    for name in folder.checkpoint_names():
        try:
            return CheckpointFacts.glance(folder.path / name)
        except NotWholeError:
            continue
    return None


def _relative(tree: StudyTree, path: Path) -> str:
    return path.relative_to(tree.data_root).as_posix()


def _json_of(known: Mapping[str, Any] | None) -> Sequence[tuple[str, Any]] | None:
    return None if known is None else tuple(sorted(known.items()))


def _class_images_differ(spec: AdapterSpec, known: Sequence[tuple[str, Any]] | None, full: bool) -> bool:
    assert spec.class_images is not None
    return other_class_images(None if known is None else dict(known), spec.class_images, full=full)
