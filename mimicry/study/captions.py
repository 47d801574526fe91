"""Captions: a prompt for each image, from text files beside the images or the folder's metadata.

    {stem}.txt        the caption of the image with that stem; takes precedence over the others
    metadata.jsonl    one line for each image, in Hugging Face's format: {"file_name": "a.jpg", "text": "..."}
    metadata.csv      the same as a table: a column file_name and a column text

Images and captions are matched by stem, because a countermeasure may have saved a .jpg as a .png. No torch.
"""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from mimicry.common.text import first_few
from mimicry.study.images import METADATA, TEXT_SUFFIX, ImageFolder, stem_of

FILE_KEY = "file_name"
# One of these keys holds the caption; all others are ignored.
TEXT_KEYS = ("text", "caption", "prompt")
# Stands for the caption in --caption-template.
CAPTION_FIELD = "{caption}"
# Words that a prompt for paintings has beside its rare token.
_ORDINARY = frozenset(
    "a an the in of on by with from and or to style styles painting paintings picture image photo photograph "
    "art artwork work drawing sketch print portrait landscape oil watercolor watercolour canvas artist "
    "person man woman dog cat object".split()
)


@dataclass(frozen=True)
class Captions:
    """The captions of a folder: one of `texts` for each image in order, None where it has none.

    `warnings` says what is unusual about them, `problems` why one cannot train with them.
    """

    texts: tuple[str | None, ...]
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: ImageFolder, original: ImageFolder | None = None) -> "Captions":
        """Read the captions of `images`; where their own folder has none, those of the `original` art."""
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

    def prompts(self, template: str | None) -> list[str | None]:
        """Return the prompt that is made of each caption; None where there is none."""
        return [None if text is None else in_template(text, template) for text in self.texts]

    def checked(self, instance_prompt: str, template: str | None) -> "Captions":
        """Return the same captions, with a problem where they lack the rare token of the instance prompt."""
        token = rare_token(instance_prompt)
        prompts = [text for text in self.texts if text is not None]
        without = [text for text in prompts if token not in _words(in_template(text, template))]
        if token is None or not without:
            return self
        problem = (
            f"{len(without)} of {len(prompts)} captions lack the rare token {token!r} of the instance "
            f"prompt, which would be bound to nothing: {first_few(without, 2)}; write it into them, or type "
            f"--caption-template {template_hint(instance_prompt, token)!r}"
        )
        return replace(self, problems=(*self.problems, problem))


def rare_token(instance_prompt: str) -> str | None:
    """Return the word of a prompt that stands for the style: the last one that is no ordinary word, or None.

    A word without a vowel, with a digit or in angle brackets goes before others: photo of sks tower.
    """
    words = [word for word in _words(instance_prompt) if word not in _ORDINARY]
    odd = [word for word in words if not re.search("[aeiouy]", word) or re.search("[0-9<>]", word)]
    found = odd or words
    return found[-1] if found else None


def in_template(caption: str, template: str | None) -> str:
    return caption if template is None else template.replace(CAPTION_FIELD, caption)


def template_hint(instance_prompt: str, token: str) -> str:
    """Return a template that would add the rare token, in the words of the instance prompt where they do."""
    match = re.search(r"\s(in the style of|in|by)\s+\S*" + re.escape(token), instance_prompt, re.IGNORECASE)
    return CAPTION_FIELD + (instance_prompt[match.start() :] if match else f", {token}")


def _words(text: str) -> list[str]:
    # Angle brackets and dashes belong to tokens such as <van-gogh>.
    return re.findall(r"[\w<>-]+", text.casefold())


def image_records(
    images: ImageFolder, captions: Captions | None, *, hashed: bool = True
) -> list[dict[str, Any]]:
    """Return what training_run.json records about images, and about their captions if given.

    With `hashed` each file is read for its sha256; OSError where that cannot be.
    """
    records: list[dict[str, Any]]
    if hashed:
        records = [{**record} for record in images.records()]
    else:
        folder = os.fspath(images.path)
        # Ten thousands of images: a Path for each takes longer than the system does.
        records = [
            {"name": name, "size": os.stat(os.path.join(folder, name)).st_size}  # noqa: PTH116, PTH118
            for name in images.names
        ]
    for record in records:
        record["stem"] = images.stem(record["name"])
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
    elif any(
        "stem" in image and image["stem"] != now.get("stem", image["stem"])
        for image, now in zip(recorded, present, strict=True)
    ):
        words.append("paired with other originals")
    captions = {image.get("name"): image.get("caption") for image in recorded}
    if any(
        "caption" in image and captions.get(image["name"], image["caption"]) != image["caption"]
        for image in present
    ):
        words.append("other captions")
    return words


@dataclass(frozen=True)
class _Found:
    texts: Mapping[str, str]
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, images: ImageFolder) -> "_Found":
        texts: dict[str, str] = {}
        problems: list[str] = []
        # A caption of an image that is left out is not an error, so all images of the folder count here.
        everything = ImageFolder.read(images.path).with_aliases(images.aliases)
        # By the stem of the file, or of its original.
        stems = {**{stem: stem for stem in everything.stems}, **everything.own_stems}
        lines = _metadata(images.path, stems, problems)
        for where, stem, text in (*lines, *_text_files(images.path, stems, problems)):
            if not isinstance(text, str) or not _is_text(text):
                problems.append(f"{where} is {text!r}; it takes a caption, text that is not blank")
            else:
                # Line breaks, which differ between systems, do not change a caption.
                texts[stem] = " ".join(text.split())
        return cls(texts, tuple(problems))


def _text_files(
    folder: Path, stems: Mapping[str, str], problems: list[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the location, stem and content of each text file; `stems` has those that captions may name."""
    seen: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except OSError:
        return  # reading the images reports it
    for name in names:
        stem = stems.get(stem_of(name), "")
        if not name.lower().endswith(TEXT_SUFFIX) or not stem:
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


def _metadata(folder: Path, stems: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    present = [folder / name for name in METADATA if os.path.lexists(folder / name)]
    if len(present) > 1:
        problems.append(f"{present[0]} and {present[1].name} both hold captions; keep one of them")
        return
    for path in present:
        content = _read_text(path, problems)
        if content is None:
            continue
        entries = _lines(path, content) if path.suffix == ".jsonl" else _rows(path, content, problems)
        yield from _captions(entries, stems, problems)


def _lines(path: Path, content: str) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    # Not splitlines: a caption may contain other line separators, and JSON Lines ends lines by "\n" only.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", number, _parsed(line)


def _rows(path: Path, content: str, problems: list[str]) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
    reader = csv.reader(StringIO(content, newline=""), strict=True)
    try:
        columns = next(reader, [])
        if FILE_KEY not in columns or not set(columns) & set(TEXT_KEYS):
            problems.append(
                f"{path} begins with {','.join(columns)!r}; it takes a first line {FILE_KEY},{TEXT_KEYS[0]}"
            )
            return
        for row in reader:
            # The caption alone may be missing; a row that is longer has a comma outside of quotes.
            if any(row):
                entry = dict(zip(columns, row, strict=True)) if len(row) == len(columns) else None
                yield f"{path}, line {reader.line_num}", reader.line_num, entry
    except csv.Error as error:
        problems.append(f"{path}, line {reader.line_num} is no row of a table: {error}")


def _captions(
    entries: Iterator[tuple[str, int, dict[str, Any] | None]], stems: Mapping[str, str], problems: list[str]
) -> Iterator[tuple[str, str, Any]]:
    seen: dict[str, int] = {}
    for where, number, entry in entries:
        if entry is None or not isinstance(entry.get(FILE_KEY), str):
            problems.append(f'{where} is not {{"{FILE_KEY}": "NAME", "{TEXT_KEYS[0]}": "CAPTION"}}')
            continue
        name, keys = entry[FILE_KEY], [key for key in TEXT_KEYS if key in entry]
        stem = stems.get(stem_of(name), "")
        if not stem:
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


def describe_other_images(
    recorded: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> str:
    """Say which images changed, are new, and are gone; an image changed when a value of `keys` did."""
    before, now = ({str(image.get("name")): image for image in images} for images in (recorded, present))
    changed = [
        name
        for name in now
        if name in before and any(before[name].get(key) != now[name].get(key) for key in keys)
    ]
    found = (
        ("changed", changed),
        ("new", [name for name in now if name not in before]),
        ("gone", [name for name in before if name not in now]),
    )
    words = [f"{what} {first_few(names)}" for what, names in found if names]
    return f"other images: {'; '.join(words) or 'in another order'}"
