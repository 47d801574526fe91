"""What lies in an adapter's folder already, compared with what is asked for.

Reading every value of an adapter takes a moment, and there are hundreds of them: one that was found good is
remembered by the identities of its weights and of their record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import FileMemory, file_identity
from mimicry.study.captions import Captions, image_records, record_differences
from mimicry.study.class_images import ClassImages
from mimicry.study.images import ImageFolder
from mimicry.study.states import State
from mimicry.tuning.adapters.folder import WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.place import recorded_elsewhere
from mimicry.tuning.adapters.recipe import recipe_differences, recipe_hash
from mimicry.tuning.adapters.training_run import TrainingRun


@dataclass(frozen=True)
class AdapterSpec:
    """What an adapter should be.

    `rank` and `recipe` are None when the stack takes no options, `class_images` when none are asked for.
    """

    rank: int | None = None
    recipe: Mapping[str, Any] | None = None
    class_images: ClassImages | None = None

    @property
    def recipe_hash(self) -> str | None:
        """The hash of the recipe; None when there is no recipe."""
        return None if self.recipe is None else recipe_hash(self.recipe)


@dataclass(frozen=True)
class AdapterState:
    """A state, and the reason for it in words; for a stale adapter, in what it differs.

    PENDING means that there are no weights.
    """

    state: State
    reason: str = ""


def judge_adapter(
    folder: AdapterFolder,
    spec: AdapterSpec,
    images: ImageFolder,
    *,
    captions: Captions | None = None,
    full: bool,
    anew: bool = False,
    listed: Sequence[Mapping[str, Any]] | None = None,
) -> AdapterState:
    """Compare what lies in `folder` with what is asked for.

    Args:
        images: the folder it would be trained on now; names and sizes are compared, with `full` contents.
        captions: those of `images`; None where none are asked for.
        full: read every value of the weights as well, unless it is remembered that they are good; otherwise
            header, sizes and record only.
        anew: with `full`, read them even if it is remembered that they are good.
        listed: names and sizes of `images`, where they are known already, as `image_records` returns them.
    """
    if not folder.has_weights:
        return AdapterState(State.PENDING)
    try:
        run = folder.run
        # One of ours must have the rank of its own record: if another is asked for, it is stale, not broken.
        rank = spec.rank if run is None else run.rank
        if not full or run is None:
            folder.check_header(rank)
        if full:
            _check_values(folder, rank, anew=anew)
    except AdapterBroken as error:
        return AdapterState(State.BROKEN, str(error))
    if run is None:
        return AdapterState(State.COMPLETE, "made by another tool")
    if full or captions is not None:
        listed = None
    differences = _differences(folder, run, spec, images, captions, full=full, listed=listed)
    words = [", ".join(differences), *(f"unpaired: {mark}" for mark in run.unpaired)]
    return AdapterState(State.STALE if differences else State.COMPLETE, "; ".join(filter(None, words)))


def _check_values(folder: AdapterFolder, rank: int | None, *, anew: bool) -> None:
    memory = FileMemory("adapters", folder.path)
    facts = _facts(folder, rank)
    if not anew and memory.knows(WEIGHTS, facts):
        return
    try:
        folder.check(rank)
        # One that was changed meanwhile is not remembered.
        if _facts(folder, rank) == facts:
            memory.keep(WEIGHTS, facts)
    finally:
        # One that is broken is forgotten.
        memory.save()


def _facts(folder: AdapterFolder, rank: int | None) -> list[Any]:
    """Return what an adapter that was found good is remembered by; in lists, as JSON gives them back."""
    identities = [file_identity(path) for path in (folder.weights, folder.record)]
    sha256 = None if folder.run is None else folder.run.weights_sha256
    return [rank, sha256, *(None if identity is None else list(identity) for identity in identities)]


def _differences(
    folder: AdapterFolder,
    run: TrainingRun,
    spec: AdapterSpec,
    images: ImageFolder,
    captions: Captions | None,
    *,
    full: bool,
    listed: Sequence[Mapping[str, Any]] | None,
) -> list[str]:
    words = []
    elsewhere = recorded_elsewhere(folder.path, run)
    if spec.recipe is not None and run.recipe is not None:
        words += recipe_differences(run.recipe, spec.recipe)
    if run.images is not None:
        try:
            if listed is None or elsewhere:
                listed = image_records(images, captions, hashed=full or bool(elsewhere))
            others = record_differences(run.images, listed)
        except OSError:
            others = ["other images"]
        # Where the images are the same, somebody has given the folder another name.
        words += [elsewhere, *others] if elsewhere and others else others
    if spec.class_images is not None and other_class_images(run.class_images, spec.class_images, full=full):
        words.append("other class images")
    return words


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
