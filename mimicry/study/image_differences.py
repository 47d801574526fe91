"""In what recorded images differ from those that are there, in words. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mimicry.common.text import first_few


def describe_other_images(
    recorded: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> str:
    """Say which images changed, are new, and are gone; an image changed when a value of `keys` did."""
    before, now = ({str(image.get("name")): image for image in images} for images in (recorded, present))
    changed = [
        name
        for name in now
        if name in before and any(before[name].get(key) != now[name].get(key) for key in keys)
    ]
    found = (
        ("changed", changed),
        ("new", [name for name in now if name not in before]),
        ("gone", [name for name in before if name not in now]),
    )
    words = [f"{what} {first_few(names)}" for what, names in found if names]
    return f"other images: {'; '.join(words) or 'in another order'}"
