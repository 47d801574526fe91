"""The paintings that are held out of training, in every condition: what the evaluation loss is measured on.

They are chosen by a hash of their stems, and not by a training's seed: replicates, conditions and machines
leave out the same ones, which say nothing of when or how a painting was made, as the first by name might.
"""

from collections.abc import Collection, Iterable
from enum import StrEnum

from mimicry.common.files import sha256_text
from mimicry.study.images import ImageFolder
from mimicry.study.pairing import Pairing


class EvaluatedOn(StrEnum):
    """What an evaluation loss is measured on: paintings that are trained on, or not, or nobody can tell."""

    HELD_OUT = "held-out"
    IN_SAMPLE = "in-sample"
    UNKNOWN = "unknown"


def held_out(stems: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the `count` stems that are held out, sorted; all of them where there are fewer.

    Args:
        stems: those of the original art that is not left out as bad, whatever the condition.
    """
    return tuple(sorted(sorted(set(stems), key=sha256_text)[:count])) if count else ()


def training_set(
    images: ImageFolder, original: ImageFolder, left_out: Collection[str], hold_out: int
) -> Pairing:
    """Pair an artist's images in one condition with the original art, and return what is trained on.

    Args:
        original: the whole original art; for the condition of originals the same folder as `images`.
        left_out: the stems that are left out as bad.
        hold_out: how many originals are held out.
    """
    held = held_out(original.without(left_out).stems, hold_out)
    return Pairing.of(images, original).without({*left_out, *held})


def hold_out_problem(original: ImageFolder, images: ImageFolder, count: int) -> str | None:
    """Return why an artist cannot be trained with so many paintings held out; None if that can be.

    Args:
        original: the original art that is not left out as bad.
        images: those of the condition that stay for training.
    """
    if not count:
        return None
    known = len(original.names)
    if not known:
        return (
            f"--hold-out {count} takes its paintings from the original art, and there is no image in "
            f"{original.path}; put it there, or type --hold-out 0 for the whole study"
        )
    if known <= count:
        return (
            f"--hold-out {count} leaves no image to train on, of {known} in {original.path}; at least one "
            f"must stay: type at most {known - 1} for the whole study, or leave this artist out"
        )
    if not images.names:
        return (
            f"--hold-out {count} leaves no image to train on: all in {images.path} are of paintings that are "
            f"held out; complete the set"
        )
    return None
