"""Records what was drawn into a folder, by which code and seed, so that a second call draws nothing.

The manifest also says which files may be replaced; other files are never touched. While files are moved into
place it is marked as unfinished, so that an interrupted drawing is not taken for a complete one.
"""

import hashlib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from mimicry.common.files import read_json, write_json

MANIFEST_NAME = "demo_manifest.json"

# The libraries that draw. Another version of one of them may write other bytes.
_LIBRARIES = ("numpy", "pillow", "torch", "diffusers")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record beside a drawn demo; `files` maps each path below the folder to its size in bytes."""

    seed: int
    drawn_by: str
    finished: bool
    files: dict[str, int]

    def is_whole(self, folder: Path, seed: int) -> bool:
        """Return whether `folder` has exactly what drawing from `seed` would put there now."""
        expected = (seed, drawing_code(), True)
        return (self.seed, self.drawn_by, self.finished) == expected and all(
            _size(folder / name) == size for name, size in self.files.items()
        )

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        write_json(folder / MANIFEST_NAME, asdict(self))


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in `folder`, or None if there is none that can be read."""
    try:
        return Manifest(**read_json(folder / MANIFEST_NAME))
    except (OSError, ValueError, TypeError):
        return None


def drawing_code() -> str:
    """Return a hash of the demo's sources and weights and of the versions of the libraries that draw."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in (*sorted(package.glob("*.py")), *sorted((package / "weights").rglob("*.*"))):
        digest.update(source.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    return digest.hexdigest()


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below `folder`, by its path from there, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
