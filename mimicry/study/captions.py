"""Captions: a prompt for each image, from text files beside the images or the folder's metadata.jsonl.

    {stem}.txt        the caption of the image with that stem; takes precedence over metadata.jsonl
    metadata.jsonl    one line for each image, in Hugging Face's format: {"file_name": "a.jpg", "text": "..."}

Images and captions are matched by stem, because a countermeasure may have saved a .jpg as a .png. No torch.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.text import first_few
from mimicry.study.image_differences import describe_other_images
from mimicry.study.images import ImageFolder, stem_of

METADATA = "metadata.jsonl"
FILE_KEY = "file_name"
# One of these keys holds the caption; all others are ignored.
TEXT_KEYS = ("text", "caption", "prompt")
_TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Captions:
    """The captions of a folder of images.

    `texts` has one entry for each image, in order; None if the image has no caption. `warnings` says what is
    unusual about the captions, `problems` says why one cannot train with them.
    """

    texts: tuple[str | None, ...]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: ImageFolder, original: ImageFolder | None = None) -> "Captions":
        """Read the captions of `images`.

        Args:
            original: the original art. If the images' own folder has no caption at all, the captions of the
                original art are used, so that the sets of one artist differ only in their images.
        """
        own = _Found.read(images)
        other = None if original is None or original.path == images.path else _Found.read(original)
        problems = (*own.problems, *(other.problems if other else ()))
        by_stem = own.texts or (other.texts if other else {})
        texts = tuple(by_stem.get(stem) for stem in images.stems)
        warnings = []
        if own.texts and other is not None:
            differing = [stem for stem in images.stems if own.texts.get(stem) != other.texts.get(stem)]
            if differing:
                warnings.append(f"captions differ from those of the original art: {first_few(differing)}")
        without = [stem for stem, text in zip(images.stems, texts, strict=True) if text is None]
        if without:
            warnings.append(
                f"{len(without)} of {len(texts)} images have no caption and are trained with the instance "
                f"prompt: {first_few(without)}"
            )
        return cls(texts, tuple(warnings), problems)


def image_records(
    images: ImageFolder, captions: Captions | None, *, hashed: bool = True
) -> list[dict[str, Any]]:
    """Return what training_run.json records about images, and about their captions if given.

    Args:
        hashed: add the sha256 of each image, which means reading the whole file.

    Raises:
        OSError: an image cannot be read.
    """
    records: list[dict[str, Any]]
    if hashed:
        records = [{**record} for record in images.records()]
    else:
        records = [{"name": path.name, "size": path.stat().st_size} for path in images.paths]
    if captions is not None:
        for record, text in zip(records, captions.texts, strict=True):
            record["caption"] = text
    return records


def record_differences(
    recorded: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Describe how recorded images differ from the `present` ones; an empty list if they do not.

    Only the keys that the `present` records have are compared; captions only for images that are in both.
    """
    words = []
    keys = [key for key in ("name", "size", "sha256") if any(key in image for image in present)]
    if [[image.get(key) for key in keys] for image in recorded] != [
        [image[key] for key in keys] for image in present
    ]:
        words.append(describe_other_images(recorded, present, keys))
    captions = {image.get("name"): image.get("caption") for image in recorded}
    if any(
        "caption" in image and captions.get(image["name"], image["caption"]) != image["caption"]
        for image in present
    ):
        words.append("other captions")
    return words


@dataclass(frozen=True)
class _Found:
    """The captions in one folder, by stem of the image, and what is wrong with them."""

    texts: Mapping[str, str]
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: ImageFolder) -> "_Found":
        texts: dict[str, str] = {}
        problems: list[str] = []
        # A caption of an image that is left out is not an error, so all images of the folder count here.
        stems = frozenset(ImageFolder.read(images.path).stems)
        lines = _metadata_lines(images.path / METADATA, stems, problems)
        for where, stem, text in (*lines, *_text_files(images.path, stems, problems)):
            if not isinstance(text, str) or not _is_text(text):
                problems.append(f"{where} is {text!r}; it takes a caption, text that is not blank")
            else:
                # Line breaks, which differ between systems, do not change a caption.
                texts[stem] = " ".join(text.split())
        return cls(texts, tuple(problems))


def _text_files(folder: Path, stems: frozenset[str], problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the location, the stem and the content of each text file that belongs to an image."""
    seen: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except OSError:
        return  # reading the images reports it
    for name in names:
        stem = stem_of(name)
        if not name.lower().endswith(_TEXT_SUFFIX) or stem not in stems:
            continue
        if stem in seen:
            problems.append(
                f"{folder / seen[stem]} and {name} are captions of the same image; keep one of them"
            )
            continue
        seen[stem] = name
        text = _read_text(folder / name, problems)
        if text is not None:
            yield f"the caption {folder / name}", stem, text


def _metadata_lines(path: Path, stems: frozenset[str], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield the location, the stem and the caption of each line of a metadata.jsonl, if there is one."""
    content = _read_text(path, problems) if os.path.lexists(path) else None
    seen: dict[str, int] = {}
    # Not splitlines: a caption may contain other line separators, and JSON Lines ends lines by "\n" only.
    for number, line in enumerate((content or "").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = _parsed(line)
        if entry is None or not isinstance(entry.get(FILE_KEY), str):
            problems.append(f'{where} is not {{"{FILE_KEY}": "NAME", "{TEXT_KEYS[0]}": "CAPTION"}}')
            continue
        name, keys = entry[FILE_KEY], [key for key in TEXT_KEYS if key in entry]
        stem = stem_of(name)
        if stem not in stems:
            problems.append(f"{where}: {name!r} is not an image of this folder; correct its {FILE_KEY}")
        elif stem in seen:
            problems.append(f"{where}: {name!r} already has a caption in line {seen[stem]}; keep one of them")
        elif len(keys) != 1:
            problems.append(f"{where} has {' and '.join(keys) or 'no caption'}; it takes one of {TEXT_KEYS}")
        else:
            yield f"{where}, {keys[0]}", stem, entry[keys[0]]
        seen.setdefault(stem, number)


def _is_text(text: str) -> bool:
    # JSON can contain lone surrogates, which no tokenizer accepts.
    return bool(text.strip()) and "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _read_text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.append(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path} is not UTF-8, at byte {error.start}; save it as UTF-8")
    return None
