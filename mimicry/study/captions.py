"""Captions: a prompt for each image, from text files beside the images or the folder's metadata.jsonl.

    {stem}.txt        the caption of the image of that stem; it goes before metadata.jsonl
    metadata.jsonl    {"file_name": "a.jpg", "text": "..."}, a line for each image, as Hugging Face has it

Images and captions belong together by stem, since a countermeasure may have saved a .jpg as .png. No torch.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.text import first_few
from mimicry.study.images import ImageFolder, stem_of

METADATA = "metadata.jsonl"
FILE_KEY = "file_name"
# One of these holds the caption; all other keys of a line are left alone.
TEXT_KEYS = ("text", "caption", "prompt")
_TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Captions:
    """The captions of a folder of images.

    `texts` has one for each image, in order, or None for an image without; `warnings` says what is odd about
    them, and `problems` what forbids training with them.
    """

    texts: tuple[str | None, ...]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: ImageFolder, original: ImageFolder | None = None) -> "Captions":
        """Read the captions of `images`.

        Args:
            original: the original art. Where the images' own folder has no caption at all, those of the
                original hold, so that the sets of one artist differ in nothing but images.
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
    """Return what training_run.json keeps of images, and of their captions where there may be any.

    Args:
        hashed: with the sha256 of each image, for which all of it is read.

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
    """Say in words in what recorded images differ from the `present` ones: empty when in nothing.

    Only what the records of `present` hold is compared; captions, of the images that both have.
    """
    words = []
    keys = [key for key in ("name", "size", "sha256") if any(key in image for image in present)]
    if [[image.get(key) for key in keys] for image in recorded] != [
        [image[key] for key in keys] for image in present
    ]:
        words.append("other images")
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
        # Those of images that are left out belong to the folder too.
        stems = frozenset(ImageFolder.read(images.path).stems)
        lines = _metadata_lines(images.path / METADATA, stems, problems)
        for where, stem, text in (*lines, *_text_files(images.path, stems, problems)):
            if not isinstance(text, str) or not _is_text(text):
                problems.append(f"{where} is {text!r}; it takes a caption, text that is not blank")
            else:
                # However a file ends its lines, its caption is the same.
                texts[stem] = " ".join(text.split())
        return cls(texts, tuple(problems))


def _text_files(folder: Path, stems: frozenset[str], problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield where it stands, stem and content of each text file that belongs to an image."""
    seen: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except OSError:
        return  # whoever reads the images says so
    for name in names:
        stem = stem_of(name)
        if not name.lower().endswith(_TEXT_SUFFIX) or stem not in stems:
            continue
        if stem in seen:
            problems.append(f"{folder / seen[stem]} and {name} are captions of one image; keep one of them")
            continue
        seen[stem] = name
        text = _read_text(folder / name, problems)
        if text is not None:
            yield f"the caption {folder / name}", stem, text


def _metadata_lines(path: Path, stems: frozenset[str], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield where it stands, stem and caption of each line of a metadata.jsonl, if there is one."""
    content = _read_text(path, problems) if os.path.lexists(path) else None
    seen: dict[str, int] = {}
    # Only a newline ends a line of JSON Lines: a caption may hold other separators.
    for number, line in enumerate((content or "").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = _parsed(line)
        if entry is None or not isinstance(entry.get(FILE_KEY), str):
            problems.append(f'{where} is no {{"{FILE_KEY}": "NAME", "{TEXT_KEYS[0]}": "CAPTION"}}')
            continue
        name, keys = entry[FILE_KEY], [key for key in TEXT_KEYS if key in entry]
        stem = stem_of(name)
        if stem not in stems:
            problems.append(f"{where}: {name!r} is no image of this folder; correct its {FILE_KEY}")
        elif stem in seen:
            problems.append(f"{where}: {name!r} has a caption in line {seen[stem]} already; keep one")
        elif len(keys) != 1:
            problems.append(f"{where} has {' and '.join(keys) or 'no caption'}; it takes one of {TEXT_KEYS}")
        else:
            yield f"{where}, {keys[0]}", stem, entry[keys[0]]
        seen.setdefault(stem, number)


def _is_text(text: str) -> bool:
    # JSON can spell halves of letters, which no tokenizer takes.
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
        problems.append(f"{path} is no UTF-8, at byte {error.start}; save it as UTF-8")
    return None
