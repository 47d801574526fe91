"""The images of one artist: which files count, in which order, and how they are read."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mimicry.common.files import is_folder, sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

# Enough for a scan with 13,000 pixels on each side; decoding it needs half a gigabyte.
MAX_PIXELS = 180_000_000
MIN_SIDE = 8
# Pillow's readers for these suffixes. Its other readers never see a file, whatever the suffix says.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "DIB")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageRecord(TypedDict):
    """What training_run.json records about an image."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images.

    `names` are its image files without hidden ones, sorted by stem. `fault` says why the folder could not be
    listed; it is empty if it could.
    """

    path: Path
    names: tuple[str, ...]
    fault: str = ""

    @classmethod
    def read(cls, path: Path) -> "ImageFolder":
        """List `path`; a folder that does not exist has no images."""
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if _is_image(entry)]
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            return cls(path=path, names=(), fault=f"{path} cannot be listed: {error.strerror}")
        return cls(path=path, names=tuple(sorted(names, key=lambda name: (stem_of(name), name))))

    @property
    def paths(self) -> list[Path]:
        return [self.path / name for name in self.names]

    @property
    def stems(self) -> list[str]:
        """The stems in order; a stem that two files share appears twice."""
        return [stem_of(name) for name in self.names]

    def problem(self) -> str | None:
        """Return why one cannot train on this folder, judged by its names alone; None if one can."""
        if self.fault:
            return self.fault
        if not self.names:
            return f"there is no image in {self.path} (one of {', '.join(IMAGE_SUFFIXES)})"
        repeated = [stem for stem, count in Counter(self.stems).items() if count > 1]
        if repeated:
            return (
                f"two files in {self.path} share the stem {', '.join(map(repr, repeated))}; keep one of them"
            )
        return None

    def without(self, stems: Collection[str]) -> "ImageFolder":
        """Return the same folder without the images that have these stems."""
        if not stems:
            return self
        return replace(self, names=tuple(name for name in self.names if stem_of(name) not in stems))

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


def stem_of(name: str) -> str:
    """Return the file name without its suffix, in Unicode form NFC: equal for every copy of a painting."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])  # noqa: PTH122 - a name, not a path


def read_rgb(path: Path) -> "Image":
    """Read an image as RGB, turned as its EXIF data says. Of several frames or pages, read the first.

    Transparent pixels become white instead of the colour that some program has left beneath.

    Raises:
        OSError: the file cannot be read as an image; the message names it. `errno` is set if the file could
            not be read at all, which says nothing about the image.
    """
    from PIL import Image, ImageOps

    # Pillow's own limit warns about large scans that are fine; ours is below.
    Image.MAX_IMAGE_PIXELS = None
    try:
        # Reading a pipe may block, and reading a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a regular file")  # noqa: TRY301
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise ValueError(f"{size} is more than {MAX_PIXELS} pixels; scale it down")  # noqa: TRY301
            if image.mode.startswith(("I", "F")):  # Pillow would turn nearly all of it white
                raise ValueError(f"{image.mode} is more than 8 bits a channel; save it with 8")  # noqa: TRY301
            turned: Image.Image = ImageOps.exif_transpose(image) or image
            return _on_white(turned)
    # Pillow's readers raise all kinds of errors on a damaged file, TypeError included.
    except Exception as error:
        raise _unreadable(path, error) from error


def check_image(path: Path) -> None:
    """Decode an image and check its size.

    Raises:
        OSError: as for `read_rgb`, or the image is too small to learn from.
    """
    width, height = read_rgb(path).size
    if min(width, height) < MIN_SIDE:
        raise OSError(
            f"{path} cannot be trained on: {width}x{height} pixels; each side needs at least {MIN_SIDE}"
        )


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
        reason = (
            f"it is a link to {path.readlink()}, which does not exist" if _dangles(path) else error.strerror
        )
        return OSError(error.errno, f"{what}: {reason}")
    if type(error).__name__ == "UnidentifiedImageError":
        size = path.stat().st_size
        kinds = ", ".join(_FORMATS[:5])
        reason = f"its {size} bytes are none of {kinds}" if size else "it is empty"
        return OSError(f"{what}: {reason}")
    return OSError(f"{what}: {error}")


def _dangles(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A broken link counts as an image, so that it is reported as unreadable instead of being ignored.
    name = entry.name
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") and not is_folder(entry)
