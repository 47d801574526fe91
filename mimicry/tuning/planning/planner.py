"""Plans a call of apply_tuning: reads the tree and the adapters that are there, and changes nothing."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.common.errors import UsageError
from mimicry.study import (
    AdapterId,
    Artist,
    Captions,
    Condition,
    ImageFolder,
    Pairing,
    Source,
    State,
    held_out,
    hold_out_problem,
)
from mimicry.study.quarantine import left_out
from mimicry.tuning.adapters import AdapterFolder, AdapterState, judge_adapter
from mimicry.tuning.adapters.bookmark import Bookmark
from mimicry.tuning.planning.findings import Findings, caption_faults, captions_of
from mimicry.tuning.planning.overwriting import Overwrite
from mimicry.tuning.planning.plan import ALLOW_UNPAIRED, OVERWRITTEN, RETRAINED, Plan, with_recipes
from mimicry.tuning.planning.request import Call, Request
from mimicry.tuning.planning.resumption import resumption
from mimicry.tuning.planning.target import Target
from mimicry.tuning.planning.twins import block_twins, trained_on_same_images

_CANNOT_LEAVE_OUT = (
    "some of its images are left out of all conditions, which cannot be told to a stack without options"
)


def make_plan(
    requests: Sequence[Request],
    bookmarks: Mapping[str, Mapping[str, Any]],
    *,
    absent: Sequence[tuple[Condition, str]] = (),
    by_condition: bool = False,
    full: bool = False,
) -> Plan:
    """Plan a call: one series after the other, and in each one artist after the other.

    Args:
        requests: at least one, series by series, each with its conditions in the order of training.
        bookmarks: those of this step, by key.
        absent: conditions without images, for the plan to say so.
        by_condition: train one condition after the other, and not all conditions of an artist.
        full: check the values of existing adapters too, not only their headers.

    Raises:
        UsageError: a condition has no images, or a filter matches nothing.
    """
    planner = _Planner(requests[0], bookmarks, full)
    sources = [(request, request.source) for request in requests]
    least = requests[0].min_samples_per_artist + max(request.hold_out for request in requests)
    chosen = planner.choose((source for _, source in sources), least)
    if requests[0].overwrite:
        folders = ((one.adapter(artist), one.folder(artist)) for one in requests for artist in chosen)
        planner.overwrite = Overwrite.find(folders, bookmarks)
    series = dict.fromkeys(request.series for request in requests)
    cells = []
    for name in series:
        own = [pair for pair in sources if pair[0].series == name]
        if by_condition:
            cells += [(artist, *pair) for pair in own for artist in chosen]
        else:
            cells += [(artist, *pair) for artist in chosen for pair in own]
    plan = Plan(
        requests=tuple(requests),
        targets=tuple(planner.target(artist, request, source) for artist, request, source in cells),
        absent=tuple(absent),
        overwrite=planner.overwrite,
    )
    if plan.has_several_conditions:
        plan = replace(plan, targets=block_twins(plan.targets))
    return with_recipes(plan)


class _Planner:
    """Plans one target after the other; each folder of images is listed once."""

    def __init__(self, call: Call, bookmarks: Mapping[str, Mapping[str, Any]], full: bool) -> None:
        self._call = call
        self._bookmarks = bookmarks
        self._full = full
        self._read = cache(ImageFolder.read)
        self._left_out = left_out(call.tree)
        self._findings = Findings()
        self.overwrite: Overwrite | None = None

    def choose(self, sources: Iterable[Source], least: int) -> list[Artist]:
        """Return the artists that are meant, of those with a folder in any condition.

        Args:
            least: the number of originals that a pilot needs.
        """
        call = self._call
        roots = dict.fromkeys([call.tree.original_art, *(source.root for source in sources)])
        known = {artist for root in roots for artist in call.tree.artists(root)}
        return call.selection.choose(sorted(known), lambda artist: len(self._original(artist).names) >= least)

    def _original(self, artist: Artist) -> ImageFolder:
        tree = self._call.tree
        images = self._read(tree.images_of(tree.original_art, artist))
        return images.without(self._left_out.get(str(artist), ()))

    def target(self, artist: Artist, request: Request, source: Source) -> Target:
        """Return what is to be done for an artist in a condition, whose images lie below `source`."""
        stems = self._left_out.get(str(artist), frozenset[str]())
        original = self._original(artist)
        whole = self._pairing(artist, source, stems)
        held = held_out(original.stems, request.hold_out)
        pairing = whole.without(held)
        images = pairing.images
        captions = captions_of(request, images, original)
        state, existing = State.BLOCKED, State.PENDING
        reason = (
            whole.images.problem()
            or hold_out_problem(original, images, request.hold_out)
            or _why_blocked(request, pairing)
        )
        if reason and not request.needs_images and not images.path.is_dir():
            state = State.NO_DATA
        faults = caption_faults(captions) if not reason else []
        if faults:
            reason = faults[0].line("-v")
        folder = request.folder(artist)
        if not reason:
            found = judge_adapter(folder, request.spec, images, captions=captions, full=self._full)
            existing = found.state
            state, reason = self._decide(request.adapter(artist), request, source, images, found)
            if state is State.PENDING and existing is State.PENDING:
                state, reason = self._resumed(request, folder, images, captions, reason)
            if state is State.PENDING and stems and not request.stack.takes_options:
                state, reason = State.BLOCKED, _CANNOT_LEAVE_OUT
        target = Target(
            request=request,
            source=source.root,
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
            held_out=held,
        )
        if state is not State.PENDING:
            return target
        return self._findings.added_to(target, captions, whole.images)

    def _pairing(self, artist: Artist, source: Source, stems: Set[str]) -> Pairing:
        tree = self._call.tree
        images = self._read(tree.images_of(source.root, artist))
        return Pairing.of(images, self._read(tree.images_of(tree.original_art, artist))).without(stems)

    def _decide(
        self,
        adapter: AdapterId,
        request: Request,
        source: Source,
        images: ImageFolder,
        found: AdapterState,
    ) -> tuple[State, str]:
        """Return the state of a target that may be trained, and the reason in words."""
        folder = request.folder(adapter.artist)
        done = self.overwrite is not None and adapter in self.overwrite.done
        mark = Bookmark.from_json(self._bookmarks.get(adapter.key, {}))
        state, reason = _wanted(request, found, mark, overwritten=done)
        if state is not State.PENDING:
            return state, reason
        holder = claimed_by(folder.path)
        if holder:
            return State.CLAIMED, holder
        twin = None if source.names_protection else trained_on_same_images(adapter, folder, images)
        if twin is not None:
            return State.BLOCKED, f"its images in {images.path} are those that {twin} was trained on"
        return state, reason

    def _resumed(
        self,
        request: Request,
        folder: AdapterFolder,
        images: ImageFolder,
        captions: Captions | None,
        reason: str,
    ) -> tuple[State, str]:
        """Return the state of a target without an adapter, and the reason with what its checkpoints do."""
        try:
            words = resumption(request, folder, images, captions, full=self._full)
        except UsageError as error:
            return State.BLOCKED, str(error)
        return State.PENDING, "; ".join(filter(None, (reason, words)))


def _wanted(
    request: Request, found: AdapterState, bookmark: Bookmark, *, overwritten: bool
) -> tuple[State, str]:
    """Return PENDING when an adapter is to be trained, else its state; and the reason.

    Args:
        overwritten: the --overwrite that is taken up has trained it again already.
    """
    if found.state is State.BROKEN:
        return State.PENDING, f"its adapter is broken and will be set aside: {found.reason}"
    if found.state is State.PENDING:
        note = bookmark.note
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


def _why_blocked(request: Request, pairing: Pairing) -> str:
    count, least = len(pairing.images.names), request.min_samples_per_artist
    if count < least:
        held = f" to train on, without those of --hold-out {request.hold_out}," if request.hold_out else ""
        return f"{count} images{held} where --min-samples-per-artist asks for {least}"
    if pairing.problem and not request.allow_unpaired:
        return f"unpaired: {pairing.problem}; complete the set, or type {ALLOW_UNPAIRED}"
    return ""
