"""Images drawn by a model, as PNG files that record how they were made. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from mimicry.common.files import atomic_path

# Euler steps from noise to image, and guidance scale.
DEFAULT_STEPS, DEFAULT_GUIDANCE = 28, 4.5
# The name of the text in a PNG that holds them.
SETTINGS_ENTRY = "mimicry"
# What is asked for beside the instance prompt, when no prompt is given.
_SUBJECTS = ("a boat", "a house", "a tree")
_STYLE = " in the style of "


def default_prompts(instance_prompt: str) -> list[str]:
    """Return the prompt that an adapter was trained with, and the same with subjects."""
    head, style, tail = instance_prompt.partition(_STYLE)
    with_subjects = [
        f"{head} of {subject}{style}{tail}" if style else f"{subject}, {instance_prompt}"
        for subject in _SUBJECTS
    ]
    return [instance_prompt, *with_subjects]


def save_sample(path: Path, image: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write `image` to `path` as a PNG with `settings` in its metadata, atomically."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text(SETTINGS_ENTRY, json.dumps(settings, sort_keys=True))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def read_settings(path: Path, *, whole: bool = True) -> dict[str, Any] | None:
    """Return the settings in the PNG at `path`, whose picture is decoded if `whole`; None of a bad one."""
    try:
        with Image.open(path) as image:
            if whole:
                image.load()
            settings = json.loads(image.info[SETTINGS_ENTRY])
    except FileNotFoundError:
        raise
    # Pillow's readers raise all kinds of errors on a damaged file.
    except Exception:
        return None
    return settings if isinstance(settings, dict) else None
