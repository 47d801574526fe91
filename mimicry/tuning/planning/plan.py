"""What a call of apply_tuning would do with each artist: read from the tree, without changing anything."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.common.errors import UsageError
from mimicry.common.text import first_few
from mimicry.study import Artist, Captions, Condition, ImageFolder, State
from mimicry.study.quarantine import left_out
from mimicry.study.tree import Source, sister_folders
from mimicry.tuning.adapters import AdapterFolder, AdapterState, judge_adapter
from mimicry.tuning.planning.overwriting import MARK, Overwrite
from mimicry.tuning.planning.recipes import StudyRecipes, mixed_notes, study_remarks
from mimicry.tuning.planning.request import Request
from mimicry.tuning.planning.resumption import resumption
from mimicry.tuning.planning.target import Target

# The number of images that the default hyper-parameters are meant for.
USUAL_IMAGE_COUNT = 20
_CANNOT_LEAVE_OUT = (
    "some of its images are left out of all conditions, which cannot be told to a stack without options"
)
# Kept in the bookmark of an artist whose adapter was set aside, until it is trained again.
OVERWRITTEN = "set aside by --overwrite"
RETRAINED = "set aside by --retrain-stale"
# The states that a plan has, in the order in which they are counted, and the word for each.
_PLANNED = {
    State.PENDING: "train",
    State.COMPLETE: "complete",
    State.STALE: "stale",
    State.CLAIMED: "claimed",
    State.BLOCKED: "blocked",
}


def plan_word(target: Target) -> str:
    """Return what a plan says of a target: what is done with it."""
    return _PLANNED[target.state]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All targets of a call, in the order in which they are trained."""

    request: Request
    source: Source
    targets: tuple[Target, ...]
    # Of the adapters that stay as they are; none are read when there is nothing to train.
    recipes: StudyRecipes = field(default_factory=StudyRecipes)
    overwrite: Overwrite | None = None
    # What is most likely not meant, of the call as a whole.
    warnings: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What there is to say of the plan as a whole."""
        return (*self.warnings, *study_remarks(self.request, self.recipes))

    def overwrite_mark(self, target: Target) -> dict[str, Any]:
        """Return what the bookmark of a target says of the --overwrite that is to train it again."""
        if self.overwrite is None or target.state not in (State.PENDING, State.CLAIMED):
            return {}
        return {MARK: self.overwrite.mark(target.adapter)}

    def of(self, *states: State) -> list[Target]:
        return [target for target in self.targets if target.state in states]

    def counts(self) -> dict[str, int]:
        """Return the number of targets for each action, zeros included."""
        counted = Counter(target.state for target in self.targets)
        return {word: counted[state] for state, word in _PLANNED.items()}


def make_plan(request: Request, bookmarks: Mapping[str, Mapping[str, Any]], *, full: bool = False) -> Plan:
    """Plan a call.

    Args:
        bookmarks: those of this step, by key.
        full: check the values of existing adapters too, not only their headers.

    Raises:
        UsageError: the condition has no images, or a filter matches nothing.
    """
    source = request.tree.source(request.condition)
    planner = _Planner(request, source, bookmarks, full)
    known = sorted({*request.tree.artists(request.tree.original_art), *request.tree.artists(source.root)})
    chosen = request.selection.choose(
        known, lambda artist: len(planner.original(artist).names) >= request.min_samples_per_artist
    )
    if request.overwrite:
        folders = ((request.adapter(artist), request.folder(artist)) for artist in chosen)
        planner.overwrite = Overwrite.find(folders, bookmarks)
    plan = Plan(
        request=request,
        source=source,
        targets=tuple(map(planner.target, chosen)),
        overwrite=planner.overwrite,
    )
    return _with_recipes(plan)


def _with_recipes(plan: Plan) -> Plan:
    """Return the plan with the recipes of the study and warnings, where something is to be trained."""
    request = plan.request
    if not plan.of(State.PENDING, State.CLAIMED):
        return plan
    warnings = tuple(request.stack.traits.warnings(request.stack_config))
    recipes = StudyRecipes()
    if request.spec.recipe is not None:
        recipes = recipes_that_stay(plan)
    notes = (*warnings, *mixed_notes(request, recipes))
    plan = replace(plan, recipes=recipes, warnings=warnings)
    if not notes:
        return plan
    targets = [
        replace(target, notes=notes) if target.state in (State.PENDING, State.CLAIMED) else target
        for target in plan.targets
    ]
    return replace(plan, targets=tuple(targets))


def recipes_that_stay(plan: Plan) -> StudyRecipes:
    """Read the recipes of the study as they are now, without what the plan is to train."""
    request = plan.request
    replaced = {target.adapter for target in plan.of(State.PENDING)}
    adapters = request.tree.adapters(request.series)
    return StudyRecipes.read(request.tree, adapters, without=replaced)


class _Planner:
    """Plans one artist after the other; each folder of images is listed once."""

    def __init__(
        self, request: Request, source: Source, bookmarks: Mapping[str, Mapping[str, Any]], full: bool
    ) -> None:
        self._request = request
        self._source = source
        self._bookmarks = bookmarks
        self._full = full
        self._read = cache(ImageFolder.read)
        self._left_out = left_out(request.tree)
        self.overwrite: Overwrite | None = None

    def original(self, artist: Artist) -> ImageFolder:
        tree = self._request.tree
        images = self._read(tree.images_of(tree.original_art, artist))
        return images.without(self._left_out.get(str(artist), ()))

    def target(self, artist: Artist) -> Target:
        request = self._request
        stems = self._left_out.get(str(artist), frozenset[str]())
        images = self._read(request.tree.images_of(self._source.root, artist)).without(stems)
        original = self.original(artist)
        unpaired = _unpaired(images, original)
        captions = Captions.read(images, original) if request.config.captions else None
        state, reason, existing = State.BLOCKED, _why_blocked(request, images, unpaired), State.PENDING
        if not reason and captions is not None:
            reason = "; ".join(captions.problems)
        folder = request.folder(artist)
        if not reason:
            found = judge_adapter(folder, request.spec, images, captions=captions, full=self._full)
            existing = found.state
            state, reason = self._decide(artist, folder, images, found)
            if state is State.PENDING and existing is State.PENDING:
                state, reason = self._resumed(folder, images, captions, reason)
            if state is State.PENDING and stems and not request.stack.takes_options:
                state, reason = State.BLOCKED, _CANNOT_LEAVE_OUT
        return Target(
            request=request,
            artist=artist,
            images=images,
            state=state,
            reason=reason,
            warnings=_warnings(images, unpaired, captions, stems) if state is State.PENDING else (),
            existing=existing,
            weights=folder.weights_identity(),
            original=original if original.problem() is None else None,
            left_out=tuple(sorted(stems)),
        )

    def _decide(
        self, artist: Artist, folder: AdapterFolder, images: ImageFolder, found: AdapterState
    ) -> tuple[State, str]:
        """Return the state of a target that may be trained, and the reason in words."""
        bookmark = self._bookmarks.get(self._request.adapter(artist).key, {})
        done = self.overwrite is not None and self._request.adapter(artist) in self.overwrite.done
        state, reason = _wanted(self._request, found, bookmark, overwritten=done)
        if state is not State.PENDING:
            return state, reason
        holder = claimed_by(folder.path)
        if holder:
            return State.CLAIMED, holder
        twin = None if self._source.names_protection else self._trained_on_same_images(folder, images)
        if twin is not None:
            return State.BLOCKED, f"its images in {images.path} are those that {twin} was trained on"
        return state, reason

    def _resumed(
        self, folder: AdapterFolder, images: ImageFolder, captions: Captions | None, reason: str
    ) -> tuple[State, str]:
        """Return the state of a target without an adapter, and the reason with what its checkpoints do."""
        try:
            words = resumption(self._request, folder, images, captions, full=self._full)
        except UsageError as error:
            return State.BLOCKED, str(error)
        return State.PENDING, "; ".join(filter(None, (reason, words)))

    def _trained_on_same_images(self, own: AdapterFolder, images: ImageFolder) -> Path | None:
        """Return the adapter of another protection that was trained on the very bytes of `images`, if any."""
        for name, path in sister_folders(own.path).items():
            condition = Condition.parse(name)
            if condition is None or condition.countermeasure != self._request.condition.countermeasure:
                continue
            folder = AdapterFolder(path)
            # One without weights failed, or its adapter was set aside.
            if folder.has_weights and _same_bytes(folder.readable_run.images, images):
                return path
        return None


def _wanted(
    request: Request, found: AdapterState, bookmark: Mapping[str, Any], *, overwritten: bool
) -> tuple[State, str]:
    """Return PENDING when an adapter is to be trained, else its state; and the reason.

    Args:
        overwritten: the --overwrite that is taken up has trained it again already.
    """
    if found.state is State.BROKEN:
        return State.PENDING, f"its adapter is broken and will be set aside: {found.reason}"
    if found.state is State.PENDING:
        note = bookmark.get("note")
        return State.PENDING, f"its old adapter was {note}" if note in (OVERWRITTEN, RETRAINED) else ""
    if request.overwrite and not (overwritten and found.state is State.COMPLETE):
        return State.PENDING, "--overwrite sets its adapter aside"
    if found.state is State.STALE and request.retrain_stale:
        return State.PENDING, f"--retrain-stale sets its adapter aside: {found.reason}"
    if found.state is State.STALE:
        return State.STALE, f"{found.reason}; kept, type --retrain-stale to train it again"
    if overwritten:
        return State.COMPLETE, "trained again by this --overwrite already"
    return State.COMPLETE, found.reason


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
