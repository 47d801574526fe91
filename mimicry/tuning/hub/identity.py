"""Whose adapter a repository holds: the copy of training_run.json there says what it was made for."""

from collections.abc import Collection, Mapping
from typing import Any

# In the copy of training_run.json that goes to the Hub.
MADE_FOR = "made_for"
# What the Hub puts into a new repository, or a person before the first upload.
_NO_ADAPTER = frozenset({".gitattributes", "README.md"})


def made_for(
    protection: str, countermeasure: str, artist: str, split: str | None, style: str | None
) -> dict[str, str | None]:
    """Return the place of an adapter in the study; split and style are None where they are unknown."""
    return {
        "protection": protection,
        "countermeasure": countermeasure,
        "split": split,
        "style": style,
        "artist": artist,
    }


def is_empty(names: Collection[str]) -> bool:
    """Return whether a repository of these files can be given any adapter."""
    return set(names) <= _NO_ADAPTER


def other_adapter(ours: Mapping[str, Any], theirs: Any) -> str | None:
    """Return whose adapter a repository holds, in words, if it is not an earlier one of ours.

    It is ours when it was made for the same artist and condition, whatever the recipe; or from some of the
    same images, which no other artist and no other condition has: a folder was renamed then.

    Args:
        ours: `made_for` and `images` of the adapter that is to go there.
        theirs: the training_run.json that is there; None when there is none that can be read.
    """
    if not isinstance(theirs, dict):
        return "files of something else, without a training_run.json that could be read"
    place = theirs.get(MADE_FOR)
    if place is not None and place == ours[MADE_FOR]:
        return None
    if _hashes(theirs.get("images")) & _hashes(ours.get("images")):
        return None
    if not isinstance(place, dict):
        return "an adapter that was trained on other images"
    return "the adapter of " + "/".join(str(part) for part in place.values() if part is not None)


def _hashes(images: Any) -> set[str]:
    if not isinstance(images, list):
        return set()
    return {image["sha256"] for image in images if isinstance(image, dict) and image.get("sha256")}
