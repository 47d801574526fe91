"""The images of a plan, decoded: an artist with bad ones is blocked, or they are left out everywhere."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mimicry.common.text import first_few, printable
from mimicry.study import ImageFolder, State, StudyTree
from mimicry.study.image_checks import bad_images
from mimicry.study.quarantine import leave_out
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.target import Target
from mimicry.tuning.progress import checking_bar


def check_images(plan: Plan) -> Plan:
    """Decode the images of the artists that are to be trained, and block those that have bad ones.

    One that another call is training now may be left to us.
    """
    looked_at = plan.of(State.PENDING, State.CLAIMED)
    with checking_bar() as progress:
        bad = bad_images([target.images for target in looked_at], progress)
    problems: dict[Path, list[str]] = defaultdict(list)
    for image in bad:
        problems[image.path.parent].append(image.problem)
    targets = []
    for target in plan.targets:
        found = problems.get(target.images.path, []) if target in looked_at else []
        if found:
            reason = "; ".join(found) + "; repair it, or type --quarantine-unpaired"
            target = replace(target, state=State.BLOCKED, reason=reason, warnings=())
        elif target in looked_at:
            links = _links_out(plan.request.tree, target.images)
            target = replace(target, warnings=(*target.warnings, *links))
        targets.append(target)
    return replace(plan, targets=tuple(targets))


def quarantine_bad_images(plan: Plan, say: Callable[[str], None]) -> bool:
    """Leave images of the plan's artists that are bad in any condition out of all; say which.

    An image that could not be read for now, by a fault of the disk or for lack of permission, is not one.

    Returns:
        Whether there were any.
    """
    tree = plan.request.tree
    folders = {
        tree.images_of(root, target.artist): target for root in tree.image_roots() for target in plan.targets
    }
    with checking_bar() as progress:
        bad = bad_images([_without_left_out(path, target) for path, target in folders.items()], progress)
    found = [(folders[image.path.parent].artist, image) for image in bad if image.lasting]
    if found:
        leave_out(tree, found)
    for artist, image in found:
        say(printable(f"{artist}: left out of all conditions: {image.problem}"))
    return bool(found)


def _without_left_out(path: Path, target: Target) -> ImageFolder:
    return ImageFolder.read(path).without(target.left_out)


def _links_out(tree: StudyTree, images: ImageFolder) -> list[str]:
    root = tree.data_root.resolve()
    names = [
        path.name for path in images.paths if path.is_symlink() and not path.resolve().is_relative_to(root)
    ]
    return [f"links to files outside of the tree: {first_few(names)}"] if names else []
