"""What a call of apply_tuning would do with each artist: read from the tree, without changing anything."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.common.errors import AdapterBroken
from mimicry.common.files import FileIdentity
from mimicry.common.text import first_few
from mimicry.study.captions import Captions
from mimicry.study.images import ImageFolder
from mimicry.study.quarantine import left_out
from mimicry.study.selection import Selection
from mimicry.study.tree import Artist, Condition, Source, StudyTree, folders_in
from mimicry.tuning.adapters.folder import WEIGHTS, read_training_run
from mimicry.tuning.adapters.state import Asked, Existing, State, judge_existing, weights_identity

# The number of images that the default hyper-parameters are meant for.
USUAL_IMAGE_COUNT = 20
# Kept in the bookmark of an artist whose adapter --overwrite has set aside, until it is trained again.
OVERWRITTEN = "set aside by --overwrite"


class Action(Enum):
    """What is done with an artist."""

    TRAIN = "train"
    COMPLETE = "complete"
    STALE = "stale"
    CLAIMED = "claimed"
    BLOCKED = "blocked"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a call asks for, apart from the hyper-parameters."""

    tree: StudyTree
    stack: str
    condition: Condition
    selection: Selection = field(default_factory=Selection)
    overwrite: bool = False
    min_samples_per_artist: int = 1
    require_paired: bool = False
    captions: bool = False

    def key(self, artist: Artist) -> str:
        """Return the artist's key in the tracker."""
        condition = self.condition
        return f"{self.stack}/{condition.protection}/{condition.countermeasure}/{artist}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One artist in a plan.

    `weights` tells the file of weights that was there from any other. `eval_dir` holds the artist's original
    art, where there is some: what every condition is measured on. `caption_dir` is the same folder where
    captions are asked for: they hold for every condition. `left_out` are the stems in quarantine; `images` is
    without them.
    """

    artist: Artist
    images: ImageFolder
    output_dir: Path
    action: Action
    reason: str = ""
    warnings: tuple[str, ...] = ()
    existing: State = State.ABSENT
    weights: FileIdentity = None
    eval_dir: Path | None = None
    caption_dir: Path | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All targets of a call, in the order in which they are trained."""

    request: Request
    source: Source
    targets: tuple[Target, ...]

    def of(self, action: Action) -> list[Target]:
        return [target for target in self.targets if target.action is action]

    def counts(self) -> dict[str, int]:
        """Return the number of targets for each action, zeros included."""
        counted = Counter(target.action for target in self.targets)
        return {action.value: counted[action] for action in Action}


def make_plan(
    request: Request, asked: Asked, bookmarks: Mapping[str, Mapping[str, Any]], *, full: bool = False
) -> Plan:
    """Plan a call.

    Args:
        asked: what the adapters should be.
        bookmarks: those of this step, by key.
        full: check the values of existing adapters too, not only their headers.

    Raises:
        UsageError: the condition has no images, or a filter matches nothing.
    """
    source = request.tree.source(request.condition)
    planner = _Planner(request, source, asked, bookmarks, full)
    known = sorted({*request.tree.artists(request.tree.original_art), *request.tree.artists(source.root)})
    chosen = request.selection.choose(
        known, lambda artist: len(planner.original(artist).names) >= request.min_samples_per_artist
    )
    return Plan(request=request, source=source, targets=tuple(map(planner.target, chosen)))


class _Planner:
    """Plans one artist after the other; each folder of images is listed once."""

    def __init__(
        self,
        request: Request,
        source: Source,
        asked: Asked,
        bookmarks: Mapping[str, Mapping[str, Any]],
        full: bool,
    ) -> None:
        self._request = request
        self._source = source
        self._asked = asked
        self._bookmarks = bookmarks
        self._full = full
        self._read = cache(ImageFolder.read)
        self._left_out = left_out(request.tree)

    def original(self, artist: Artist) -> ImageFolder:
        tree = self._request.tree
        images = self._read(tree.images_of(tree.original_art, artist))
        return images.without(self._left_out.get(str(artist), ()))

    def target(self, artist: Artist) -> Target:
        request = self._request
        stems = self._left_out.get(str(artist), frozenset[str]())
        images = self._read(request.tree.images_of(self._source.root, artist)).without(stems)
        output_dir = request.tree.output_dir(request.stack, request.condition, artist)
        original = self.original(artist)
        unpaired = _unpaired(images, original)
        captions = Captions.read(images, original) if request.captions else None
        action, reason, existing = Action.BLOCKED, _why_blocked(request, images, unpaired), State.ABSENT
        if not reason and captions is not None:
            reason = "; ".join(captions.problems)
        if not reason:
            found = judge_existing(output_dir, self._asked, images, captions=captions, full=self._full)
            existing = found.state
            action, reason = _action(request, found, self._bookmarks.get(request.key(artist), {}))
        weights = weights_identity(output_dir)
        holder = claimed_by(output_dir) if action is Action.TRAIN else ""
        if holder:
            action, reason = Action.CLAIMED, holder
        if action is Action.TRAIN and not self._source.names_protection:
            twin = _trained_on_same_images(request, artist, images)
            if twin is not None:
                action = Action.BLOCKED
                reason = f"its images in {images.path} are those that {twin} was trained on"
        return Target(
            artist=artist,
            images=images,
            output_dir=output_dir,
            action=action,
            reason=reason,
            warnings=_warnings(images, unpaired, captions, stems) if action is Action.TRAIN else (),
            existing=existing,
            weights=weights,
            eval_dir=original.path if original.problem() is None else None,
            caption_dir=original.path if captions is not None and original.problem() is None else None,
            left_out=tuple(sorted(stems)),
        )


def _action(request: Request, found: Existing, bookmark: Mapping[str, Any]) -> tuple[Action, str]:
    if found.state is State.BROKEN:
        return Action.TRAIN, f"its adapter is broken and is set aside: {found.reason}"
    if found.state is State.ABSENT:
        overwritten = bookmark.get("note") == OVERWRITTEN
        return Action.TRAIN, f"its old adapter was {OVERWRITTEN}" if overwritten else ""
    if request.overwrite:
        return Action.TRAIN, "--overwrite sets its adapter aside"
    if found.state is State.STALE:
        return Action.STALE, f"{found.reason}; kept, type --overwrite to train it again"
    return Action.COMPLETE, found.reason


def _why_blocked(request: Request, images: ImageFolder, unpaired: str) -> str:
    problem = images.problem()
    if problem is not None:
        return problem
    if len(images.names) < request.min_samples_per_artist:
        least = request.min_samples_per_artist
        return f"{len(images.names)} images where --min-samples-per-artist asks for {least}"
    return f"{unpaired}, and --require-paired is given" if unpaired and request.require_paired else ""


def _unpaired(images: ImageFolder, original: ImageFolder) -> str:
    """Return in what the stems of two folders differ, in words; empty when in nothing."""
    if images.names == original.names:  # the common case, ten thousand times
        return ""
    here, there = set(images.stems), set(original.stems)
    if here == there:
        return ""
    parts = []
    if there - here:
        parts.append(f"lacks {first_few(sorted(there - here))} of original_art")
    if here - there:
        parts.append(f"has {first_few(sorted(here - there))} that original_art has not")
    return " and ".join(parts)


def _warnings(
    images: ImageFolder, unpaired: str, captions: Captions | None, stems: Set[str]
) -> tuple[str, ...]:
    warnings = []
    if len(images.names) < USUAL_IMAGE_COUNT:
        warnings.append(f"{len(images.names)} images; the defaults are meant for {USUAL_IMAGE_COUNT}")
    if unpaired:
        warnings.append(f"unpaired: {unpaired}")
    if captions is not None:
        warnings += captions.warnings
    if stems:
        warnings.append(f"left out of all conditions, as bad in one: {', '.join(map(repr, sorted(stems)))}")
    return tuple(warnings)


def _trained_on_same_images(request: Request, artist: Artist, images: ImageFolder) -> Path | None:
    """Return the adapter of another protection that was trained on the very bytes of `images`, if any."""
    outputs = request.tree.stack_outputs(request.stack)
    for name in folders_in(outputs):
        if name == str(request.condition) or not name.endswith(f"__{request.condition.countermeasure}"):
            continue
        other = request.tree.images_of(outputs / name, artist)
        if not (other / WEIGHTS).exists():  # a training that failed, or whose adapter was set aside
            continue
        try:
            run = read_training_run(other)
        except AdapterBroken:
            continue
        if run is not None and _same_bytes(run.get("images"), images):
            return other
    return None


def _same_bytes(recorded: Any, images: ImageFolder) -> bool:
    if not isinstance(recorded, Sequence) or len(recorded) != len(images.names):
        return False
    sizes = sorted(image.get("size", -1) for image in recorded)
    # Sizes first: reading every byte is for the rare case that they are all equal.
    if sizes != sorted(path.stat().st_size for path in images.paths if path.exists()):
        return False
    return sorted(image.get("sha256", "") for image in recorded) == sorted(
        image["sha256"] for image in images.records()
    )
