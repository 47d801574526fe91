"""Two conditions of an artist with the very same images: one of them is not what its folder says."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mimicry.common.files import sha256_file
from mimicry.study import Artist, Condition, ImageFolder, sister_folders
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.planning.target import Action, Target


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
