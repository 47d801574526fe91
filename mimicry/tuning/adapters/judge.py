"""Whether the adapter in a folder is whole, and as asked for.

There are two depths. A look at headers reads headers, names and sizes. A full look reads every value and
every image. That takes a moment, so what it found is remembered outside the study until the files change. A
look at headers recalls it: a fault that was found once is known to all commands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import FileMemory, file_identity
from mimicry.study import (
    AdapterId,
    Captions,
    ClassImages,
    ImageFolder,
    Listing,
    State,
    image_records,
    record_differences,
)
from mimicry.tuning.adapters.folder import WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.recipe import complete_options, recipe_differences, recipe_hash
from mimicry.tuning.adapters.training_run import TrainingRun

# What is remembered of an adapter beside its good weights: a fault of them, and images of other contents.
_FAULT, _IMAGES = "fault", "images"


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter should be.

    `rank` and `recipe` are None when the stack takes no options, `class_images` when none are asked for.
    `fields` are the options of the recipe that count; None: all of it, base model and trainer too. A
    study.toml asks for what is written in it, and for nothing else.
    """

    rank: int | None = None
    recipe: Mapping[str, Any] | None = None
    class_images: ClassImages | None = None
    fields: frozenset[str] | None = None

    @property
    def recipe_hash(self) -> str | None:
        """The hash of the recipe; None when there is no recipe."""
        return None if self.recipe is None else recipe_hash(self.recipe)

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Return how a recorded recipe differs from this one, as texts such as `rank 8 -> 16`."""
        if self.recipe is None:
            return []
        asked = self.recipe
        if self.fields is not None:
            options = complete_options(recorded)
            if options is None:
                return []
            known = asked["options"]
            written = {name: known[name] for name in self.fields if name in known}
            model = recorded.get("base_model")
            if self.fields & OF_BASE_MODEL:
                model = asked["base_model"]
            # What is not written is as it was.
            asked = {
                "options": options | written,
                "base_model": model or asked["base_model"],
                "trainer": recorded.get("trainer"),
            }
        return recipe_differences(recorded, asked)


OF_BASE_MODEL = {"pretrained_model_name_or_path", "revision"}


@dataclass(frozen=True)
class AdapterState:
    """A state and the reason for it; of a stale adapter the reason names the differences.

    WAITING means that there are no weights.
    """

    state: State
    reason: str = ""
    # The differences of its images alone, where there are some.
    other_images: str = field(default="", compare=False)


def judge_adapter(
    folder: AdapterFolder,
    spec: AdapterSpec,
    images: ImageFolder | None,
    *,
    captions: Captions | None = None,
    full: bool,
    anew: bool = False,
    listing: Listing | None = None,
) -> AdapterState:
    """Compare the weights in `folder` with their record and with what is asked for.

    Args:
        images: the images that it would be trained on now; None compares none. Names and sizes are compared,
            with `full` contents.
        captions: those of `images`; None where none are asked for.
        full: read every value of the weights as well, unless it is remembered what they are.
        anew: with `full`, read them whatever is remembered.
        listing: `images` as they were listed already.
    """
    if not folder.has_weights:
        return AdapterState(State.WAITING)
    memory = FileMemory("adapters", folder.path)
    try:
        run = folder.run
        # One of ours must have the rank of its own record: if another is asked for, it is stale, not broken.
        _check(folder, spec.rank if run is None else run.rank, memory, full=full, anew=anew)
        if run is None:
            return AdapterState(State.COMPLETE, "made by another tool")
        others = ""
        if images is not None and run.images is not None:
            others = ", ".join(_image_differences(folder, run, images, captions, memory, listing, full=full))
    except AdapterBroken as error:
        return AdapterState(State.BROKEN, str(error))
    finally:
        if full:
            memory.save()
    differences = [] if run.recipe is None else spec.differences(run.recipe)
    differences += [others] if others else []
    if spec.class_images is not None and other_class_images(run.class_images, spec.class_images, full=full):
        differences.append("other class images")
    marks = [f"unpaired: {mark}" for mark in run.unpaired]
    reason = "; ".join(filter(None, (", ".join(differences), *marks)))
    return AdapterState(State.STALE if differences else State.COMPLETE, reason, others)


def _check(folder: AdapterFolder, rank: int | None, memory: FileMemory, *, full: bool, anew: bool) -> None:
    """Check the weights against their format, their record and what is remembered of them."""
    if not full or folder.run is None:
        folder.check_header(rank)
    facts = _facts(folder, rank)
    if not full:
        fault = memory.recall(_FAULT, [*facts, _changed_at(folder.weights)])
        if fault:
            raise AdapterBroken(str(fault))
        return
    if not anew and memory.knows(WEIGHTS, facts):
        return
    try:
        folder.check(rank)
    except AdapterBroken as error:
        memory.keep(_FAULT, [*facts, _changed_at(folder.weights)], str(error))
        raise
    # One that was changed meanwhile is not remembered.
    if _facts(folder, rank) == facts:
        memory.keep(WEIGHTS, facts)


def _changed_at(path: Path) -> int | None:
    """Return when the file, or the right to read it, was changed last, in nanoseconds."""
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return None


def _facts(folder: AdapterFolder, rank: int | None) -> list[Any]:
    """Return what an adapter is remembered by; in lists, as JSON gives them back."""
    identities = [file_identity(path) for path in (folder.weights, folder.record)]
    sha256 = None if folder.run is None else folder.run.weights_sha256
    return [rank, sha256, *(None if identity is None else list(identity) for identity in identities)]


def _image_differences(
    folder: AdapterFolder,
    run: TrainingRun,
    images: ImageFolder,
    captions: Captions | None,
    memory: FileMemory,
    listing: Listing | None,
    *,
    full: bool,
) -> list[str]:
    assert run.images is not None
    elsewhere = recorded_elsewhere(folder.path, run)
    try:
        if listing is None and (full or not memory.is_empty):
            listing = Listing.read(images)
        facts = None if listing is None else [run.weights_sha256, listing.fingerprint]
        if full or elsewhere:
            present = image_records(images, captions)
        elif captions is not None or listing is None:
            present = image_records(images, captions, hashed=False)
        else:
            present = listing.records
        others = record_differences(run.images, present)
    except OSError:
        return ["other images"]
    if full and others:
        memory.keep(_IMAGES, facts, others)
    elif not full and not others:
        others = list(memory.recall(_IMAGES, facts) or [])
    # Where the images are the same, somebody has given the folder another name.
    return [elsewhere, *others] if elsewhere and others else others


def other_class_images(known: Mapping[str, Any] | None, asked: ClassImages, *, full: bool) -> bool:
    """Return whether recorded class images are others than those that are there now."""
    # Those that are still to be generated are not known yet.
    if known is None or asked.missing():
        return False
    try:
        if full:
            return known != asked.record()
        return bool(known.get("listing_sha256") != asked.listing_sha256())
    except OSError:
        return True


def recorded_spec(run: TrainingRun) -> AdapterSpec:
    """Return what the record of an adapter says that it should be, beside its images and recipe."""
    options, paths = run.options or {}, run.paths or {}
    folder, count = paths.get("class_data_dir"), options.get("num_class_images")
    class_images = ClassImages(Path(folder).absolute(), count) if folder and isinstance(count, int) else None
    return AdapterSpec(class_images=class_images)


def recorded_elsewhere(folder: Path, run: TrainingRun) -> str:
    """Say of which condition and artist the record is, if the adapter in `folder` should be another's.

    A study may be moved, and an adapter reused for a variant. It is empty for a record without a path.
    """
    path = (run.paths or {}).get("output_dir")
    recorded = AdapterId.parse(Path(path)) if isinstance(path, str) else None
    here = AdapterId.parse(folder)
    if recorded is None or here is None:
        return ""
    if (recorded.condition, recorded.artist) == (here.condition, here.artist):
        return ""
    return f"its record is of {recorded.condition}/{recorded.artist}"
