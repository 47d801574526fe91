"""Plans a call of apply_tuning: reads the tree and the adapters that are there, and changes nothing."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.common.files import sha256_file
from mimicry.study import (
    Artist,
    Bookmarks,
    Captions,
    CellImages,
    Condition,
    ImageFolder,
    Pairing,
    Source,
    State,
    hold_out_problem,
    image_records,
    record_differences,
    sister_folders,
)
from mimicry.tuning.adapters import (
    ALLOW_UNPAIRED,
    OWN_TRAINER,
    AdapterFolder,
    AdapterStatus,
    Bookmark,
    Inspector,
    QueuedJob,
    other_class_images,
)
from mimicry.tuning.adapters.checkpoint_facts import CheckpointFacts, choose_checkpoint
from mimicry.tuning.planning.image_check import Findings, caption_faults, captions_of
from mimicry.tuning.planning.plan import OVERWRITTEN, RETRAINED, WAYS_FOR_STALE, Overwrite, Plan, with_recipes
from mimicry.tuning.planning.target import Action, Request, Target

_CANNOT_LEAVE_OUT = (
    "some of its images are left out of all conditions, which cannot be told to a stack without options"
)


def make_plan(
    requests: Sequence[Request],
    bookmarks: Bookmarks,
    *,
    queue: Mapping[str, QueuedJob] | None = None,
    absent: Sequence[tuple[Condition, str]] = (),
    by_condition: bool = False,
    full: bool = False,
) -> Plan:
    """Plan a call: one series after the other, and in each one artist after the other.

    Args:
        requests: at least one, series by series, each with its conditions in the order of training.
        absent: conditions without images, for the plan to say so.
        by_condition: train one condition after the other, and not all conditions of an artist.
        full: check the values of existing adapters too, not only their headers.

    Raises:
        UsageError: a condition has no images, or a filter matches nothing.
    """
    planner = _Planner(requests, bookmarks, queue or {}, full=full)
    sources = [(request, request.source) for request in requests]
    chosen = planner.artists()
    if requests[0].overwrite:
        folders = ((each.adapter(artist), each.folder(artist)) for each in requests for artist in chosen)
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
    """Plans one target after the other."""

    def __init__(
        self,
        requests: Sequence[Request],
        bookmarks: Bookmarks,
        queue: Mapping[str, QueuedJob],
        *,
        full: bool,
    ) -> None:
        call = requests[0]
        self._requests = requests
        self._bookmarks = bookmarks
        self._full = full
        self._images = CellImages(call.tree)
        self._inspector = Inspector(
            self._images,
            form=call.stack.traits.adapter_format,
            bookmarks=bookmarks,
            specs={request.series: request.spec for request in requests},
            queue=queue,
            full=full,
        )
        self._findings = Findings()
        self.overwrite: Overwrite | None = None

    def artists(self) -> list[Artist]:
        """Return the artists that are meant, of those with a folder in any condition.

        Raises:
            UsageError: a filter matches nothing.
        """
        call = self._requests[0]
        least = call.min_samples_per_artist + max(request.hold_out for request in self._requests)
        known = self._images.artists(request.condition for request in self._requests)
        return call.selection.choose(
            sorted(known), lambda artist: len(self._images.original(artist).names) >= least
        )

    def target(self, artist: Artist, request: Request, source: Source) -> Target:
        """Return what is to be done for an artist in a condition, whose images lie below `source`."""
        status = self._inspector.look(request.adapter(artist))
        original = self._images.original(artist)
        stems = self._images.left_out(artist)
        whole = self._images.whole(request.condition, artist)
        if whole is None:
            nothing = ImageFolder.read(request.tree.images_of(source.root, artist))
            whole = Pairing.of(nothing, original)
        held = self._images.held_out(artist, request.hold_out)
        pairing = whole.without(held)
        captions = captions_of(request, pairing.images, original)
        action = Action.BLOCK
        reason = (
            whole.images.problem()
            or hold_out_problem(original, pairing.images, request.hold_out)
            or _why_blocked(request, pairing)
        )
        if reason and not request.needs_images and not pairing.images.path.is_dir():
            action = Action.NONE
        faults = caption_faults(captions) if not reason else []
        if faults:
            reason = faults[0].line("-v")
        target = Target(
            request=request,
            source=source.root,
            artist=artist,
            pairing=pairing,
            status=status,
            action=action,
            reason=reason,
            findings=tuple(faults),
            marks=(pairing.problem,) if pairing.problem else (),
            weights=request.folder(artist).weights_identity(),
            original=original if original.problem() is None else None,
            left_out=tuple(sorted(stems)),
            held_out=held,
        )
        if reason:
            return target
        target = self._decided(target, source)
        if target.action is Action.TRAIN and status.weights is None:
            target = self._resumed(target, captions)
        if target.action is Action.TRAIN and stems and not request.stack.takes_options:
            target = replace(target, action=Action.BLOCK, reason=_CANNOT_LEAVE_OUT)
        if target.action is not Action.TRAIN:
            return target
        return self._findings.added_to(target, captions, whole.images)

    def _decided(self, target: Target, source: Source) -> Target:
        status, adapter = target.status, target.adapter
        done = self.overwrite is not None and adapter in self.overwrite.done
        bookmark = Bookmark.from_json(self._bookmarks.get(adapter.key, {}))
        action, reason = _wanted(target.request, status, bookmark, overwritten=done)
        if action is not Action.TRAIN:
            return replace(target, action=action, reason=reason)
        if status.job is not None:
            return replace(target, action=Action.WAIT, reason=_queued(status.job, target))
        if status.holder is not None:
            return replace(target, action=Action.WAIT, reason=status.holder.description())
        twin = None if source.names_protection else trained_on_same_images(target)
        if twin is not None:
            reason = f"its images in {target.images.path} are those that {twin} was trained on"
            return replace(target, action=Action.BLOCK, reason=reason)
        return replace(target, action=action, reason=reason)

    def _resumed(self, target: Target, captions: Captions | None) -> Target:
        try:
            words = resumption(target.request, target.folder, target.images, captions, full=self._full)
        except UsageError as error:
            return replace(target, action=Action.BLOCK, reason=str(error))
        return replace(target, reason="; ".join(filter(None, (target.reason, words))))


def _wanted(
    request: Request, status: AdapterStatus, bookmark: Bookmark, *, overwritten: bool
) -> tuple[Action, str]:
    """Return what is done with an adapter as far as the call decides it, and why."""
    if status.weights is None:
        if status.state is State.BROKEN:  # its folder cannot be listed
            return Action.BLOCK, status.reason
        note = bookmark.note
        return Action.TRAIN, f"its old adapter was {note}" if note in (OVERWRITTEN, RETRAINED) else ""
    if status.weights is State.BROKEN:
        return Action.TRAIN, f"its adapter is broken and will be set aside: {status.reason}"
    is_stale = status.weights is State.STALE
    if request.overwrite and (is_stale or not overwritten):
        return Action.TRAIN, "--overwrite sets its adapter aside"
    if is_stale and request.retrain_stale:
        return Action.TRAIN, f"--retrain-stale sets its adapter aside: {status.reason}"
    if status.repair:
        return Action.REPAIR, f"{status.reason}; it is written again"
    if is_stale:
        return Action.SKIP, f"{status.reason}; kept: {WAYS_FOR_STALE}"
    if overwritten:
        return Action.SKIP, "trained again by this --overwrite already"
    return Action.SKIP, status.reason


def _queued(job: QueuedJob, target: Target) -> str:
    if job.recipe in (None, target.request.spec.recipe_hash):
        return str(job)
    return (
        f"{job}, and was submitted with other options than these; to train it with these, "
        f"`{job.how_to_cancel}` and use the same command again"
    )


def _why_blocked(request: Request, pairing: Pairing) -> str:
    count, least = len(pairing.images.names), request.min_samples_per_artist
    if count < least:
        held = f" to train on, without those of --hold-out {request.hold_out}," if request.hold_out else ""
        return f"{count} images{held} where --min-samples-per-artist asks for {least}"
    if pairing.problem and not request.allow_unpaired:
        return f"unpaired: {pairing.problem}; complete the set, or use {ALLOW_UNPAIRED}"
    return ""


def resumption(
    request: Request, folder: AdapterFolder, images: ImageFolder, captions: Captions | None, *, full: bool
) -> str:
    """Say at which step a training goes on, and which checkpoints it drops and why; empty without any.

    Args:
        full: read the checkpoints and the images whole, as the trainer does.

    Raises:
        UsageError: the checkpoint that --resume-from-checkpoint names does not fit.
    """
    recipe = request.spec.recipe
    if recipe is None or recipe["trainer"] != OWN_TRAINER:  # others know themselves what they go on from
        return ""

    def difference(checkpoint: CheckpointFacts) -> str:
        facts = checkpoint.facts
        try:
            words = record_differences(facts["images"], image_records(images, captions, hashed=full))
        except OSError:
            words = ["other images"]
        asked = request.spec.class_images
        if asked is not None and other_class_images(facts.get("class_images"), asked, full=full):
            words.append("other class images")
        return checkpoint.other_run(recipe, words)

    read = CheckpointFacts.read if full else CheckpointFacts.glance
    found, dropped = choose_checkpoint(folder, request.config.resume_from_checkpoint, read, difference)
    words = [f"drops {name}: {reason}" for name, reason in dropped.items()]
    if found is not None:
        words.insert(0, f"resumes at step {found.step} of {request.config.step_count(len(images.names))}")
    return "; ".join(words)


def block_twins(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return the targets; one that is to be trained is blocked if another condition has its very images.

    The first one in the order of training is left: which of the two is wrong, nobody can tell but the user.
    """
    found: dict[Artist, dict[tuple[int, ...], list[ImageFolder]]] = defaultdict(lambda: defaultdict(list))
    sizes, contents = cache(_sizes), cache(_contents)
    checked = []
    for target in targets:
        if target.action in (Action.TRAIN, Action.SKIP, Action.REPAIR):
            # Sizes first: reading every byte is for the rare case that they are all equal.
            others = found[target.artist][sizes(target.images)]
            twin = _twin(target.images, others, contents)
            if twin is not None and target.action is Action.TRAIN:
                reason = f"its images in {target.images.path} are those of {twin.path}, byte by byte"
                target = replace(target, action=Action.BLOCK, reason=reason)
            elif twin is None and all(other.path != target.images.path for other in others):
                others.append(target.images)
        checked.append(target)
    return tuple(checked)


def _twin(
    images: ImageFolder,
    others: Sequence[ImageFolder],
    contents: Callable[[ImageFolder], list[str] | None],
) -> ImageFolder | None:
    different = [other for other in others if other.path != images.path]
    if not different or (own := contents(images)) is None:
        return None
    return next((other for other in different if contents(other) == own), None)


def _sizes(images: ImageFolder) -> tuple[int, ...]:
    sizes = []
    for path in images.paths:
        with suppress(OSError):  # it goes while we look
            sizes.append(path.stat().st_size)
    return tuple(sorted(sizes))


def _contents(images: ImageFolder) -> list[str] | None:
    try:
        return sorted(sha256_file(path) for path in images.paths)
    except OSError:  # the check of images says what is wrong with it
        return None


def trained_on_same_images(target: Target) -> Path | None:
    """Return the adapter of another protection that was trained on the very bytes of its images, if any."""
    for name, path in sister_folders(target.folder.path).items():
        condition = Condition.parse(name)
        if condition is None or condition.countermeasure != target.request.condition.countermeasure:
            continue
        folder = AdapterFolder(path)
        # One without weights failed, or its adapter was set aside.
        if folder.has_weights and _same_bytes(folder.readable_run.images, target.images):
            return path
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
