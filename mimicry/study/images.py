"""The images of one artist: which files count, in which order, and how they are read."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mimicry.common.files import is_folder, sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

# Enough for a scan with 13,000 pixels on each side; decoding it needs half a gigabyte.
MAX_PIXELS = 180_000_000
MIN_SIDE = 8
# The EXIF tag, and its values that swap width and height.
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
# Of the texts in a PNG, unpacked: programs that generate images write megabytes, a bomb has gigabytes.
MAX_TEXT_BYTES = 1 << 28
# Pillow's readers for these suffixes. Its other readers never see a file, whatever the suffix says.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "DIB")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")
# Files with captions, beside the images: see `mimicry.study.captions`.
METADATA = ("metadata.jsonl", "metadata.csv")
TEXT_SUFFIX = ".txt"
# Pictures that are not read, and programs that turn them into PNG.
_HEIF, _JXL = "heif-convert (libheif)", "djxl (libjxl)"
READERS = {".heic": _HEIF, ".heif": _HEIF, ".hif": _HEIF, ".jxl": _JXL}
# Of 255: profiles that differ from sRGB by less differ in rounding.
_SAME_COLOUR = 3
# The modes of Pillow for the colour spaces of profiles.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class ImageRecord(TypedDict):
    """What training_run.json records about an image."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images: `names` are its image files, `ignored` its others, without hidden ones, by stem.

    `fault` says why it could not be listed; it is empty if it could. `aliases` has the stem that an image
    goes by where that is not its own: the stem of its original.
    """

    path: Path
    names: tuple[str, ...]
    fault: str = ""
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, path: Path) -> "ImageFolder":
        """List `path`; a folder that does not exist has no images."""
        names: list[str] = []
        ignored: list[str] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    # A broken link counts as a file, so that it is reported as unreadable.
                    if not entry.name.startswith(".") and not is_folder(entry):
                        (names if entry.name.lower().endswith(IMAGE_SUFFIXES) else ignored).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            return cls(path=path, names=(), fault=f"{path} cannot be listed: {error.strerror}")
        names.sort(key=lambda name: (stem_of(name), name))
        return cls(path=path, names=tuple(names), ignored=tuple(sorted(ignored)))

    def with_aliases(self, aliases: Mapping[str, str]) -> "ImageFolder":
        """Return the same folder, whose images go by the stems of `aliases`, and are sorted by them."""
        if not aliases:
            return self
        names = sorted(self.names, key=lambda name: (aliases.get(name, stem_of(name)), name))
        return replace(self, names=tuple(names), aliases=aliases)

    @property
    def paths(self) -> list[Path]:
        return [self.path / name for name in self.names]

    @property
    def own_stems(self) -> dict[str, str]:
        """The stem that each image goes by, by that of its file."""
        return {stem_of(name): self.stem(name) for name in self.names}

    def stem(self, name: str) -> str:
        return self.aliases.get(name) or stem_of(name)

    @property
    def stems(self) -> list[str]:
        """The stems in order; a stem that two files share appears twice."""
        return [self.stem(name) for name in self.names]

    def problem(self) -> str | None:
        """Return why one cannot train on this folder, judged by its names alone; None if one can."""
        if self.fault:
            return self.fault
        if not self.names:
            others = (
                f"; it has {len(self.ignored)} other files, such as {self.ignored[0]!r}"
                if self.ignored
                else ""
            )
            return f"there is no image in {self.path} (one of {', '.join(IMAGE_SUFFIXES)}){others}"
        repeated = [stem for stem, count in Counter(self.stems).items() if count > 1]
        if repeated:
            return (
                f"two files in {self.path} share the stem {', '.join(map(repr, repeated))}; keep one of them"
            )
        return None

    def is_caption(self, name: str) -> bool:
        """Return whether a file that is no image has the captions of some."""
        return name in METADATA or (name.lower().endswith(TEXT_SUFFIX) and stem_of(name) in self.own_stems)

    def only(self, stems: Collection[str]) -> "ImageFolder":
        return replace(self, names=tuple(name for name in self.names if self.stem(name) in stems))

    def without(self, stems: Collection[str]) -> "ImageFolder":
        if not stems:
            return self
        return replace(self, names=tuple(name for name in self.names if self.stem(name) not in stems))

    def changed_since(self, records: Sequence[ImageRecord]) -> list[str]:
        """Return the names of `records` whose files have changed or are gone."""
        return [record["name"] for record in records if not _is_same(self.path / record["name"], record)]

    def records(self) -> list[ImageRecord]:
        """Read every file and return its name, size in bytes and sha256."""
        return [
            {"name": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}
            for path in self.paths
        ]


def _is_same(path: Path, record: ImageRecord) -> bool:
    try:
        return path.stat().st_size == record["size"] and sha256_file(path) == record["sha256"]
    except OSError:
        return False


@lru_cache(maxsize=1 << 16)
def stem_of(name: str) -> str:
    """Return the file name without its suffix, in Unicode form NFC: equal for every copy of a painting."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])  # noqa: PTH122 - a name, not a path


@dataclass(frozen=True)
class Reading:
    """How images are read, in every condition alike.

    `convert_profiles` brings their colours to sRGB by their embedded profiles, which are ignored otherwise.
    `source_resolution` reduces images whose shorter side has more pixels, so that none carries more detail.
    """

    convert_profiles: bool = False
    source_resolution: int | None = None

    def evens_out(self, *sizes: tuple[int, int]) -> bool:
        """Return whether images of these sizes, of one aspect, are reduced to the same detail."""
        return self.source_resolution is not None and all(
            min(size) >= self.source_resolution for size in sizes
        )

    def reduced(self, picture: "Image") -> "Image":
        from PIL import Image

        shorter = min(picture.size)
        if self.source_resolution is None or shorter <= self.source_resolution:
            return picture
        scale = self.source_resolution / shorter
        width, height = (max(1, round(scale * side)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS)


AS_THEY_ARE = Reading()


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a decoded image: size in pixels, turned as EXIF says; Pillow's `mode` and `format`.

    `profile` names an embedded colour profile; `other_colours`: it is not sRGB, or cannot be used.
    """

    width: int
    height: int
    mode: str
    format: str
    profile: str | None = None
    other_colours: bool = False


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


def read_rgb(path: Path, reading: Reading = AS_THEY_ARE) -> "Image":
    """Read an image as RGB, turned as its EXIF data says; the first of several frames or pages.

    Transparent pixels become white instead of the colour that some program has left beneath. An OSError names
    the file; its `errno` is set if it could not be read at all.
    """
    return decode(path, reading)[0]


def decode(path: Path, reading: Reading = AS_THEY_ARE) -> tuple["Image", ImageFacts]:
    """Read an image as `read_rgb` does, and tell what it is."""
    from PIL import Image, ImageOps, PngImagePlugin

    # Pillow's own limits refuse large scans, and the long texts that programs write into PNGs; ours are here.
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    try:
        # Reading a pipe may block, and reading a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a regular file")  # noqa: TRY301
        with Image.open(path, formats=supported_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise ValueError(f"{size} is more than {MAX_PIXELS} pixels; scale it down")  # noqa: TRY301
            if image.mode.startswith(("I", "F")):  # Pillow would turn nearly all of it white
                raise ValueError(f"{image.mode} is more than 8 bits a channel; save it with 8")  # noqa: TRY301
            mode, form = image.mode, str(image.format)
            content = image.info.get("icc_profile")
            turned: Image.Image = ImageOps.exif_transpose(image) or image
            profile = profile_of(content, mode) if content else None
            if profile is not None and reading.convert_profiles:
                turned = profile.to_srgb(turned)
            picture = _on_white(turned)
    # Pillow's readers raise all kinds of errors on a damaged file, TypeError included.
    except Exception as error:
        raise _unreadable(path, error) from error
    return reading.reduced(picture), ImageFacts(
        width=picture.width,
        height=picture.height,
        mode=mode,
        format=form,
        profile=None if profile is None else profile.name,
        other_colours=profile is not None and not profile.is_srgb,
    )


def header_size(path: Path) -> tuple[int, int] | None:
    """Return width and height by Pillow, turned as EXIF says, without decoding; None if that cannot be."""
    from PIL import Image, TiffImagePlugin

    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path, formats=supported_formats()) as image:
            width, height = image.size
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # Newer versions of Pillow give the turned size of these.
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            on_its_side = image.getexif().get(ORIENTATION) in ON_ITS_SIDE
            return (height, width) if on_its_side else (width, height)
    except Exception:  # Pillow's readers raise all kinds of errors
        return None


def check_image(path: Path, reading: Reading = AS_THEY_ARE) -> tuple["Image", ImageFacts]:
    """Decode an image as `decode` does; OSError also where it is too small to learn from."""
    picture, facts = decode(path, reading)
    if min(facts.width, facts.height) < MIN_SIDE:
        raise OSError(
            f"{path} cannot be trained on: {facts.width}x{facts.height} pixels; each side needs at least "
            f"{MIN_SIDE}"
        )
    return picture, facts


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _unreadable(path: Path, error: Exception) -> OSError:
    what = f"{path} cannot be read as an image"
    if isinstance(error, OSError) and error.errno is not None:
        dangles = path.is_symlink() and not path.exists()
        reason = f"it is a link to {path.readlink()}, which does not exist" if dangles else error.strerror
        return OSError(error.errno, f"{what}: {reason}")
    if type(error).__name__ == "UnidentifiedImageError":
        return OSError(f"{what}: {_unidentified(path)}")
    return OSError(f"{what}: {error}")


def _unidentified(path: Path) -> str:
    size = path.stat().st_size
    if not size:
        return "it is empty"
    with path.open("rb") as file:
        start = file.read(16)
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in (b"avif", b"avis"):
            return "it is AVIF, which this Pillow cannot read; type pip install 'pillow>=11.3', or convert it"
        if brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
            return f"it is HEIC, which is not read; convert it to PNG with {READERS['.heic']}"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return f"it is JPEG XL, which is not read; convert it to PNG with {READERS['.jxl']}"
    return f"its {size} bytes are none of {', '.join(_FORMATS[:6])}"


@cache
def supported_formats() -> tuple[str, ...]:
    """Return the formats that Pillow reads here: AVIF came with version 11.3, and not to every system."""
    has_avif = find_spec("PIL._avif") is not None
    return tuple(form for form in _FORMATS if form != "AVIF" or has_avif)
