"""The conditions of a whole study, and where benchmarks put its images."""

from pathlib import Path

from mimicry.study.tree import COUNTERMEASURES, NONE, PROTECTIONS, Artist, Condition, StudyTree

_STYLES = 10
# The original art; each protection alone and countered by each countermeasure.
CONDITIONS = (
    Condition(),
    *(
        Condition(protection, countermeasure)
        for protection in PROTECTIONS
        for countermeasure in (NONE, *COUNTERMEASURES)
    ),
)


def image_root(tree: StudyTree, condition: Condition) -> Path:
    """Return the folder that is to get the images of a condition; it need not be there."""
    if condition.countermeasure != NONE:
        return tree.robust_samples / condition.countermeasure / condition.protection
    return tree.original_art if condition == Condition() else tree.protected_art / condition.protection


def made_up_artists(count: int) -> list[Artist]:
    return [
        Artist("historical", f"style_{number % _STYLES}", f"artist_{number:05}") for number in range(count)
    ]
