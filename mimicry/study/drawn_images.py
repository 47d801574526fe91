"""Images that a model draws: the class images of prior preservation, and samples. No torch.

The class images of a study lie in one folder; class_images.json has their settings. A generated one depends
only on its index and the settings, so any process can make it at any time. A user may put others there.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimicry.common.files import atomic_path, canonical_json, read_json, sha256_text, write_json
from mimicry.study.images import ImageFolder, stem_of

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = "class_images.json"
# Euler steps from noise to image, and guidance scale.
DEFAULT_STEPS, DEFAULT_GUIDANCE = 28, 4.5
# The name of the text in a PNG that holds them.
SETTINGS_ENTRY = "mimicry"
# What is asked for beside the instance prompt, when no prompt is given.
_SUBJECTS = ("a boat", "a house", "a tree")
_STYLE = " in the style of "


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
        """Return why the folder cannot be used with `settings`, which are None if not known yet."""
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


def default_prompts(instance_prompt: str) -> list[str]:
    """Return the prompt that an adapter was trained with, and the same with subjects."""
    head, style, tail = instance_prompt.partition(_STYLE)
    with_subjects = [
        f"{head} of {subject}{style}{tail}" if style else f"{subject}, {instance_prompt}"
        for subject in _SUBJECTS
    ]
    return [instance_prompt, *with_subjects]


def save_sample(path: Path, image: "Image", settings: Mapping[str, Any]) -> None:
    """Write `image` to `path` as a PNG with `settings` in its metadata, atomically."""
    from PIL import PngImagePlugin

    metadata = PngImagePlugin.PngInfo()
    metadata.add_text(SETTINGS_ENTRY, json.dumps(settings, sort_keys=True))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def read_settings(path: Path, *, whole: bool = True) -> dict[str, Any] | None:
    """Return the settings in the PNG at `path`, whose picture is decoded if `whole`; None of a bad one."""
    from PIL import Image

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
