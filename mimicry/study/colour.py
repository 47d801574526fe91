"""Colour profiles that are embedded in images: their names, and bringing an image to sRGB by its own."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

# Of 255: profiles that differ from sRGB by less differ in rounding.
_SAME_COLOUR = 3
# The modes of Pillow for the colour spaces of profiles.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@dataclass(frozen=True)
class ColourProfile:
    """An embedded profile. `fault` says why it cannot be used; it is empty if it can."""

    name: str
    is_srgb: bool
    mode: str = ""
    fault: str = ""
    content: bytes = b""

    def to_srgb(self, image: "Image") -> "Image":
        """Return `image`, of the mode it was read for, as RGB or RGBA in sRGB, or raise ValueError."""
        if self.fault:
            raise ValueError(f"its colour profile {self.name!r} {self.fault}; save it without, or as sRGB")
        if self.is_srgb:
            return image
        alpha = None
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
        converted = _apply(self.content, _opaque(image, self.mode))
        if alpha is not None:
            converted.putalpha(alpha)
        return converted


@lru_cache(maxsize=256)
def profile_of(content: bytes, mode: str) -> ColourProfile:
    try:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        name = ImageCms.getProfileDescription(profile).strip() or "without a name"
        space = str(profile.profile.xcolor_space).strip()
    except Exception as error:  # of Pillow without littlecms2, of littlecms2, and of text that is no text
        return ColourProfile("unknown", is_srgb=False, fault=f"cannot be read ({error})")
    source = _MODES.get(space)
    if source is None or (source == "CMYK") != (mode == "CMYK") or (source == "L" and mode[0] not in "1L"):
        return ColourProfile(name, is_srgb=False, fault=f"is for {space} and the image is {mode}")
    try:
        is_srgb = source != "CMYK" and _changes_nothing(content, source)
    except Exception as error:
        return ColourProfile(name, is_srgb=False, fault=f"cannot be used ({error})")
    return ColourProfile(name, is_srgb, source, content=content)


def _opaque(image: "Image", mode: str) -> "Image":
    if image.mode == mode:
        return image
    # The colours of a palette, and those below transparency, are in the space of the profile as well.
    return image.convert("RGB") if mode == "RGB" else image.convert(mode)


def _changes_nothing(content: bytes, mode: str) -> bool:
    from PIL import Image, ImageChops

    levels = range(0, 256, 17)
    if mode == "L":
        probe = Image.frombytes("L", (16, 1), bytes(levels))
    else:
        colours = bytes(value for r in levels for g in levels for b in levels for value in (r, g, b))
        probe = Image.frombytes("RGB", (256, 16), colours)
    difference = ImageChops.difference(_apply(content, probe), probe.convert("RGB"))
    bands: Any = difference.getextrema()
    return bool(max(high for _, high in bands) <= _SAME_COLOUR)


def _apply(content: bytes, image: "Image") -> "Image":
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(BytesIO(content)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # only where it works in place
    return converted
