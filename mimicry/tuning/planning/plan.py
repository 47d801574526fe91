"""What a call of apply_tuning would do with each artist: read from the tree, without changing anything."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.common.errors import UsageError
from mimicry.study import (
    Artist,
    Captions,
    Condition,
    ImageFolder,
    Pairing,
    Source,
    State,
    sister_folders,
)
from mimicry.study.image_sets import SHOWN, Finding, crop_loss, geometry, ignored
from mimicry.study.image_sizes import Size, stated_sizes
from mimicry.study.quarantine import left_out
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
ALLOW_UNPAIRED = "--allow-unpaired, which marks its adapter as unpaired for good"
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
        original = self.original(artist)
        pairing = self._pairing(artist, stems)
        images = pairing.images
        captions = _captions(request, images, original)
        state, reason, existing = State.BLOCKED, _why_blocked(request, pairing), State.PENDING
        faults = _caption_faults(captions) if not reason else []
        if faults:
            reason = faults[0].line("-v")
        folder = request.folder(artist)
        if not reason:
            found = judge_adapter(folder, request.spec, images, captions=captions, full=self._full)
            existing = found.state
            state, reason = self._decide(artist, folder, images, found)
            if state is State.PENDING and existing is State.PENDING:
                state, reason = self._resumed(folder, images, captions, reason)
            if state is State.PENDING and stems and not request.stack.takes_options:
                state, reason = State.BLOCKED, _CANNOT_LEAVE_OUT
        target = Target(
            request=request,
            artist=artist,
            pairing=pairing,
            state=state,
            reason=reason,
            findings=tuple(faults),
            marks=(pairing.problem,) if pairing.problem else (),
            existing=existing,
            weights=folder.weights_identity(),
            original=original if original.problem() is None else None,
            left_out=tuple(sorted(stems)),
        )
        if state is not State.PENDING:
            return target
        sizes = stated_sizes(images.path, images.names)
        findings = (*_findings(target, captions), *_shape_findings(pairing, sizes))
        return replace(target, sizes=sizes, findings=findings)

    def _pairing(self, artist: Artist, stems: Set[str]) -> Pairing:
        tree = self._request.tree
        images = self._read(tree.images_of(self._source.root, artist))
        return Pairing.of(images, self._read(tree.images_of(tree.original_art, artist))).without(stems)

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


def _captions(request: Request, images: ImageFolder, original: ImageFolder) -> Captions | None:
    config = request.config
    if not config.captions:
        return None
    return Captions.read(images, original).checked(config.instance_prompt, config.caption_template)


def _caption_faults(captions: Captions | None) -> list[Finding]:
    """Return one finding with all problems of the captions, if there are any."""
    if captions is None or not captions.problems:
        return []
    problems = captions.problems
    more = f" and {len(problems) - SHOWN} more problems with captions" if len(problems) > SHOWN else ""
    return [Finding("; ".join(problems[:SHOWN]) + more, problems)]


def _why_blocked(request: Request, pairing: Pairing) -> str:
    images = pairing.images
    problem = images.problem()
    if problem is not None:
        return problem
    if len(images.names) < request.min_samples_per_artist:
        least = request.min_samples_per_artist
        return f"{len(images.names)} images where --min-samples-per-artist asks for {least}"
    if pairing.problem and not request.allow_unpaired:
        return f"unpaired: {pairing.problem}; complete the set, or type {ALLOW_UNPAIRED}"
    return ""


def _findings(target: Target, captions: Captions | None) -> list[Finding]:
    """Return what the names of files tell about the images of a target."""
    images, pairing = target.images, target.pairing
    lines = []
    if len(images.names) < USUAL_IMAGE_COUNT:
        lines.append(f"{len(images.names)} images; the defaults are meant for {USUAL_IMAGE_COUNT}")
    lines += [f"unpaired: {mark}" for mark in target.marks]
    if pairing.note:
        lines.append(pairing.note)
    if captions is not None:
        lines += captions.warnings
    if target.left_out:
        lines.append(f"left out of all conditions, as bad in one: {', '.join(map(repr, target.left_out))}")
    return [*map(Finding, lines), *ignored(images, captions=captions is not None)]


def _shape_findings(pairing: Pairing, sizes: Mapping[str, Size]) -> list[Finding]:
    """Return what the sizes of the images tell, beside those of their originals."""
    original_sizes: Mapping[str, Size] = {}
    if pairing.original is not None:
        partners = [partner for name in sizes if (partner := pairing.partner(name)) is not None]
        original_sizes = stated_sizes(pairing.original.path, partners)
    return [*geometry(pairing, sizes, original_sizes), *crop_loss(pairing.images, sizes)]


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
