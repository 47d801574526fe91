"""The images of a plan, decoded and compared with their originals; what forbids a training blocks it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from mimicry.common.files import sha256_file, write_bytes
from mimicry.common.text import first_few, printable
from mimicry.study import (
    NONE,
    AdapterId,
    BadImage,
    Captions,
    Condition,
    Examined,
    Finding,
    ImageFolder,
    Pairing,
    Reading,
    Size,
    State,
    StudyTree,
    bad_images,
    examine,
    image_sets,
    leave_out,
    remembered,
    stated_sizes,
)
from mimicry.tuning.adapters.inspect import ALLOW_UNPAIRED
from mimicry.tuning.planning.display import checking_bar
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.target import Action, Request, Target


def check_images(plan: Plan, *, with_files: bool = False) -> Plan:
    """Decode the images of the artists that are to be trained, and block those that must not be trained on.

    Images of several series are decoded once. With `with_files`, lists that are too long for a line are said
    to be in the file of `write_image_lists`.
    """
    groups: dict[tuple[Reading, int], list[Target]] = defaultdict(list)
    for target in plan.of(State.WAITING, State.RUNNING):
        groups[target.request.config.reading, target.request.hold_out].append(target)
    checked: dict[AdapterId, Target] = {}
    for (reading, _), targets in groups.items():
        sets = {path: pairing for target in targets for path, pairing in _read_for(target).items()}
        with checking_bar() as progress:
            result = examine(list(sets.values()), progress, reading=reading)
        found = dict(zip(sets, result.found, strict=True))
        for target in targets:
            known = found[target.images.path]
            own = {name: known[name] for name in target.images.names if name in known}
            if with_files:
                tree = plan.call.tree
                path = tree.image_lists(target.request.condition).relative_to(tree.data_root)
                target = replace(target, lists_at=str(path))
            checked[target.adapter] = _checked(target, own, _bad_of(target, result.bad))
    return replace(plan, targets=tuple(checked.get(target.adapter, target) for target in plan.targets))


def _read_for(target: Target) -> dict[Path, Pairing]:
    sets = {target.images.path: target.pairing}
    if target.held_out and target.original is not None:
        # The whole folder, which is remembered as a whole.
        sets[target.original.path] = Pairing(target.original)
    return sets


def _bad_of(target: Target, bad: Iterable[BadImage]) -> list[BadImage]:
    evaluated = target.original.only(target.held_out).paths if target.original is not None else []
    read = {*target.images.paths, *evaluated}
    return [image for image in bad if image.path in read]


def recall_images(plan: Plan) -> Plan:
    """Return the plan with what earlier calls found of images that are as they were; decodes nothing."""
    targets = []
    for target in plan.targets:
        if target.state in (State.WAITING, State.RUNNING):
            found = remembered(target.pairing, target.request.config.reading)
            if len(found) == len(target.images.names):
                target = _checked(target, found, [])
        targets.append(target)
    return replace(plan, targets=tuple(targets))


def image_lists(plan: Plan) -> str:
    return "".join(_lists_of(plan, target) for target in plan.targets)


def write_image_lists(plan: Plan) -> None:
    """Write the lists of each condition where the lines of the plan say that they are."""
    texts: dict[Condition, str] = defaultdict(str)
    for target in plan.targets:
        texts[target.request.condition] += _lists_of(plan, target)
    for condition, text in texts.items():
        if text:
            write_bytes(plan.call.tree.image_lists(condition), text.encode("utf-8", "backslashreplace"))


def _lists_of(plan: Plan, target: Target) -> str:
    return "".join(finding.full_list(plan.name_of(target)) for finding in target.findings)


def _checked(target: Target, found: dict[str, Examined], bad: list[BadImage]) -> Target:
    pairing = target.pairing
    target = replace(target, examined=found, marks=image_sets.marks(pairing, found))
    if bad:
        return _blocked(
            target, image_sets.unusable(pairing.images, bad), "repair it, or type --quarantine-unpaired"
        )
    same = image_sets.unchanged(pairing, found)
    if same and len(same) == len(pairing.images.names):
        text = (
            f"all {len(same)} images are those of original_art, pixel by pixel, and nothing was done to them"
        )
        return _blocked(target, Finding(text), f"make {pairing.images.path} again")
    if _not_countered(target):
        text = f"all {len(pairing.images.names)} images are those that were to be countered, byte by byte"
        return _blocked(target, Finding(text), f"make {pairing.images.path} again")
    wrong = image_sets.unlike(pairing, found)
    if wrong and not target.request.allow_unpaired:
        return _blocked(target, wrong[0], f"put the right images there, or type {ALLOW_UNPAIRED}")
    findings = [
        *(replace(finding, text=f"unpaired: {finding.text}") for finding in wrong),
        *image_sets.unchanged_warning(pairing, found),
        *image_sets.uncompared(pairing, found),
        *image_sets.colours(pairing, found, convert_profiles=target.request.config.convert_profiles),
        *_links_out(target.request.tree, pairing.images),
    ]
    return replace(target, findings=(*target.findings, *findings))


def _not_countered(target: Target) -> bool:
    condition, tree = target.request.condition, target.request.tree
    if NONE in (condition.protection, condition.countermeasure):
        return False
    protected = tree.images_of(tree.protected_art / condition.protection, target.artist)
    before = _as_paired(tree, target, protected).without(target.held_out)
    files = dict(zip(before.stems, before.paths, strict=True))
    images = target.images
    return all(
        stem in files and _same_bytes(path, files[stem])
        for stem, path in zip(images.stems, images.paths, strict=True)
    )


def _same_bytes(path: Path, other: Path) -> bool:
    try:
        return path.stat().st_size == other.stat().st_size and sha256_file(path) == sha256_file(other)
    except OSError:
        return False


def _blocked(target: Target, finding: Finding, advice: str) -> Target:
    reason = f"{finding.line(target.lists_at)}; {advice}"
    return replace(target, action=Action.BLOCK, reason=reason, findings=(finding,))


def quarantine_bad_images(plan: Plan, say: Callable[[str], None]) -> bool:
    """Leave images that are bad in any condition out of all, and return whether there were any."""
    tree = plan.call.tree
    folders = {
        tree.images_of(root, target.artist): target for root in tree.image_roots() for target in plan.targets
    }
    sets = [
        # Of what is held out, the originals alone are read.
        _as_paired(tree, target, path).without(() if tree.original_art in path.parents else target.held_out)
        for path, target in folders.items()
    ]
    with checking_bar() as progress:
        bad = bad_images(sets, progress, reading=plan.requests[0].config.reading)
    found = [(folders[image.path.parent].artist, image) for image in bad if image.lasting]
    if found:
        leave_out(tree, found)
    by_artist: dict[str, list[str]] = defaultdict(list)
    for artist, image in found:
        by_artist[str(artist)].append(image.problem)
    for name, problems in by_artist.items():
        for problem in problems[: image_sets.SHOWN]:
            say(printable(f"{name}: left out of all conditions: {problem}"))
        if len(problems) > image_sets.SHOWN:
            more = f"{len(problems) - image_sets.SHOWN} more, listed in {tree.quarantine}"
            say(printable(f"{name}: left out of all conditions: {more}"))
    return bool(found)


def _as_paired(tree: StudyTree, target: Target, path: Path) -> ImageFolder:
    original = ImageFolder.read(tree.images_of(tree.original_art, target.artist))
    return Pairing.of(ImageFolder.read(path), original).without(target.left_out).images


def _links_out(tree: StudyTree, images: ImageFolder) -> list[Finding]:
    root = tree.data_root.resolve()
    names = [
        path.name for path in images.paths if path.is_symlink() and not path.resolve().is_relative_to(root)
    ]
    return [Finding(f"links to files outside of the tree: {first_few(names)}", tuple(names))] if names else []


# The number of images that the default hyper-parameters are meant for.
USUAL_IMAGE_COUNT = 20


def captions_of(request: Request, images: ImageFolder, original: ImageFolder) -> Captions | None:
    config = request.config
    if not config.captions:
        return None
    return Captions.read(images, original).checked(config.instance_prompt, config.caption_template)


def caption_faults(captions: Captions | None) -> list[Finding]:
    if captions is None or not captions.problems:
        return []
    problems = captions.problems
    more = (
        f" and {len(problems) - image_sets.SHOWN} more problems with captions"
        if len(problems) > image_sets.SHOWN
        else ""
    )
    return [Finding("; ".join(problems[: image_sets.SHOWN]) + more, problems)]


class Findings:
    """Finds what is odd about targets; the headers of an image are read once for all of them."""

    def __init__(self) -> None:
        self._sizes = cache(stated_sizes)

    def added_to(self, target: Target, captions: Captions | None, whole: ImageFolder) -> Target:
        """Return a target that is to be trained, with the sizes that its images state and all findings."""
        pairing, original_sizes = target.pairing, dict[str, Size]()
        sizes = self._sizes(target.images.path, target.images.names)
        if pairing.original is not None:
            partners = [partner for name in sizes if (partner := pairing.partner(name)) is not None]
            original_sizes = self._sizes(pairing.original.path, tuple(partners))
        findings = (
            *_findings(target, captions, whole),
            *image_sets.geometry(pairing, sizes, original_sizes, target.request.config.reading),
            *image_sets.crop_loss(pairing.images, sizes),
        )
        return replace(target, sizes=sizes, findings=findings)


def _findings(target: Target, captions: Captions | None, whole: ImageFolder) -> list[Finding]:
    pairing = target.pairing
    lines = []
    if len(whole.names) < USUAL_IMAGE_COUNT:
        lines.append(f"{len(whole.names)} images; the defaults are meant for {USUAL_IMAGE_COUNT}")
    lines += [f"unpaired: {mark}" for mark in target.marks]
    if pairing.note:
        lines.append(pairing.note)
    if captions is not None:
        lines += captions.warnings
    if target.left_out:
        lines.append(f"left out of all conditions, as bad in one: {', '.join(map(repr, target.left_out))}")
    return [*map(Finding, lines), *image_sets.ignored(whole, captions=captions is not None)]
