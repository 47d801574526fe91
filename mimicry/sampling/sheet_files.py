"""Writing a contact sheet in the format of its suffix, with its settings in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import atomic_path
from mimicry.study.sample_files import SETTINGS_ENTRY

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}
# The longest side that a format has, in pixels.
_LONGEST = {"JPEG": 65_500, "WEBP": 16_383}
_QUALITY = 92
_IMAGE_DESCRIPTION = 0x010E  # of EXIF
_DOTS_PER_INCH = 150


def refuse_other_formats(path: Path) -> None:
    """Refuse a suffix that no sheet can have, before anything is drawn.

    Raises:
        UsageError: it is none of those known.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--contact-sheet {path}: a sheet is {', '.join(_FORMATS)}; type {path.with_suffix('.png')}"
        )


def save_sheet(path: Path, sheet: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write `sheet`, in the format of the suffix of `path`, with `settings` as JSON in its metadata.

    They are where samples have theirs in a PNG, the image description of a JPEG's or WebP's EXIF data, and
    the subject of a PDF.

    Raises:
        BatchFault: the file cannot be written, or is too large for its format.
    """
    form = _FORMATS[path.suffix.lower()]
    longest = _LONGEST.get(form, max(sheet.size))
    if max(sheet.size) > longest:
        raise BatchFault(
            f"--contact-sheet {path}: it has {sheet.width}x{sheet.height} pixels, and {form} takes {longest} "
            f"a side; type {path.with_suffix('.png')}, or a smaller --sheet-tile"
        )
    try:
        with atomic_path(path) as temporary:
            sheet.save(temporary, format=form, **_arguments(form, json.dumps(settings, sort_keys=True)))
    except OSError as error:
        raise BatchFault(f"--contact-sheet {path} cannot be written: {error.strerror or error}") from error


def _arguments(form: str, settings: str) -> dict[str, Any]:
    if form == "PNG":
        metadata = PngImagePlugin.PngInfo()
        metadata.add_text(SETTINGS_ENTRY, settings)
        return {"pnginfo": metadata, "optimize": True}
    if form == "PDF":
        return {
            "resolution": _DOTS_PER_INCH,
            "title": "contact sheet",
            "subject": settings,
            "quality": _QUALITY,
        }
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = settings
    return {"exif": exif, "quality": _QUALITY}
