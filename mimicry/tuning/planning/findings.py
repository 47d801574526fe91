"""What is odd about the images and captions of a target, as far as names and sizes tell."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from mimicry.study import Captions, ImageFolder
from mimicry.study.image_sets import SHOWN, Finding, crop_loss, geometry, ignored
from mimicry.study.image_sizes import Size, stated_sizes
from mimicry.tuning.planning.request import Request
from mimicry.tuning.planning.target import Target

# The number of images that the default hyper-parameters are meant for.
USUAL_IMAGE_COUNT = 20


def captions_of(request: Request, images: ImageFolder, original: ImageFolder) -> Captions | None:
    config = request.config
    if not config.captions:
        return None
    return Captions.read(images, original).checked(config.instance_prompt, config.caption_template)


def caption_faults(captions: Captions | None) -> list[Finding]:
    """Return one finding with all problems of the captions, if there are any."""
    if captions is None or not captions.problems:
        return []
    problems = captions.problems
    more = f" and {len(problems) - SHOWN} more problems with captions" if len(problems) > SHOWN else ""
    return [Finding("; ".join(problems[:SHOWN]) + more, problems)]


class Findings:
    """Finds what is odd about targets; the headers of an image are read once for all of them."""

    def __init__(self) -> None:
        self._sizes = cache(stated_sizes)

    def added_to(self, target: Target, captions: Captions | None, whole: ImageFolder) -> Target:
        """Return a target that is to be trained, with the sizes that its images state and all findings.

        Args:
            whole: its images, with those that are held out.
        """
        sizes = self._sizes(target.images.path, target.images.names)
        findings = (*_findings(target, captions, whole), *self._of_shapes(target, sizes))
        return replace(target, sizes=sizes, findings=findings)

    def _of_shapes(self, target: Target, sizes: Mapping[str, Size]) -> list[Finding]:
        """Return what the sizes of the images tell, beside those of their originals."""
        pairing = target.pairing
        original_sizes: Mapping[str, Size] = {}
        if pairing.original is not None:
            partners = [partner for name in sizes if (partner := pairing.partner(name)) is not None]
            original_sizes = self._sizes(pairing.original.path, tuple(partners))
        differing = geometry(pairing, sizes, original_sizes, target.request.config.reading)
        return [*differing, *crop_loss(pairing.images, sizes)]


def _findings(target: Target, captions: Captions | None, whole: ImageFolder) -> list[Finding]:
    """Return what the names of files tell about the images of a target."""
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
    return [*map(Finding, lines), *ignored(whole, captions=captions is not None)]
