"""The class images of prior preservation, in one folder of a study; class_images.json has their settings.

A generated image depends only on its index and the settings, so any process can make it at any time. Images
that a user put there are used too. No torch.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mimicry.common.files import canonical_json, read_json, sha256_text, write_json
from mimicry.study.images import ImageFolder, stem_of

SETTINGS = "class_images.json"


@dataclass(frozen=True)
class ClassImages:
    """The class images of a run: `count` images in `folder`, of which some may have to be generated."""

    folder: Path
    count: int

    @cached_property
    def images(self) -> ImageFolder:
        """The images to train on, including those still to be generated: the first `count` by stem."""
        present = ImageFolder.read(self.folder)
        names = sorted((*present.names, *map(generated_name, self.missing())), key=stem_of)
        return ImageFolder(self.folder, tuple(names[: self.count]), present.fault)

    def missing(self) -> list[int]:
        """Return the indices of the images that are still to be generated, in order."""
        present = ImageFolder.read(self.folder).names
        others = (index for index in itertools.count() if generated_name(index) not in present)
        return list(itertools.islice(others, max(0, self.count - len(present))))

    def problems(self, settings: Mapping[str, Any] | None) -> list[str]:
        """Return why the folder cannot be used.

        Args:
            settings: what images would be generated with now; None if that is not known yet.
        """
        problem = self.images.problem()
        if problem is not None:
            return [f"--class-data-dir: {problem}"]
        if self.folder.exists() and not self.folder.is_dir():
            return [f"--class-data-dir {self.folder} is not a folder; name one"]
        try:
            made = self.recorded_settings()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            return [f"--class-data-dir: {self.folder / SETTINGS} cannot be read: {error}; remove it"]
        if made is None or settings is None:
            return []
        other = [
            f"{name} {made.get(name)!r} -> {value!r}"
            for name, value in settings.items()
            if made.get(name) != value
        ]
        if not other:
            return []
        return [
            f"--class-data-dir: the images in {self.folder} were generated with other settings "
            f"({', '.join(other)}); name another folder, or use the settings that they were generated with"
        ]

    def recorded_settings(self) -> Mapping[str, Any] | None:
        """Return what the images were generated with; None if none was. Raises what reading JSON does."""
        try:
            made = read_json(self.folder / SETTINGS)
        except FileNotFoundError:
            return None
        if not isinstance(made, dict):
            raise TypeError("it has no settings")
        return made

    def record_settings(self, settings: Mapping[str, Any]) -> None:
        write_json(self.folder / SETTINGS, settings)

    def record(self) -> dict[str, Any]:
        """Return what training_run.json records about the images; OSError where one cannot be read."""
        files = [[image["name"], image["sha256"]] for image in self.images.records()]
        return {"count": len(files), "sha256": _hash(files), "listing_sha256": self.listing_sha256()}

    def listing_sha256(self) -> str:
        """Return a hash of names and sizes, which is quick to compute; OSError where an image is missing."""
        return _hash([[path.name, path.stat().st_size] for path in self.images.paths])


def generated_name(index: int) -> str:
    return f"class-{index:05}.png"


def _hash(value: Any) -> str:
    return sha256_text(canonical_json(value))
