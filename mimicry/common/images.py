"""The images of one artist: which files count, in which order, and how they are read."""

import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mimicry.common.files import is_folder, sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageRecord(TypedDict):
    """What training_run.json keeps of an image."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images.

    `names` are its image files, sorted by stem; hidden files are left out. `fault` says why the folder could
    not be listed, if so.
    """

    path: Path
    names: tuple[str, ...]
    fault: str = ""

    @classmethod
    def read(cls, path: Path) -> "ImageFolder":
        """List `path`; a folder that is not there has no images."""
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
        """The stems in order; one that two files share stands twice."""
        return [stem_of(name) for name in self.names]

    def problem(self) -> str | None:
        """Return why the names alone forbid training on this folder, or None."""
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

    def records(self) -> list[ImageRecord]:
        """Read every file and return its name, size in bytes and sha256."""
        return [
            {"name": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}
            for path in self.paths
        ]


def stem_of(name: str) -> str:
    """Return the file name without its suffix, accents composed: equal for every copy of a painting."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])  # noqa: PTH122 - a name, not a path


def read_rgb(path: Path) -> "Image":
    """Read an image as RGB, turned as its EXIF data says.

    Raises:
        OSError: the file cannot be read as an image; the message names it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would turn nearly all of it white
                raise ValueError(f"{image.mode} is more than 8 bits a channel; save it with 8")  # noqa: TRY301
            turned: Image.Image = ImageOps.exif_transpose(image) or image
            return turned.convert("RGB")
    # A damaged file brings any kind of error out of Pillow's readers, TypeError included.
    except Exception as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def unreadable_images(folder: ImageFolder) -> list[str]:
    """Decode every image of `folder`, several at a time, and return a message for each that is unreadable."""
    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(_unreadable, folder.paths) if problem]


def _unreadable(path: Path) -> str:
    try:
        read_rgb(path)
    except OSError as error:
        return str(error)
    return ""


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A dangling link counts, so that it is reported as unreadable instead of being passed over.
    name = entry.name
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") and not is_folder(entry)
