"""The contact sheet: a row for each artist, and in it what was painted, and what was drawn, side by side."""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import atomic_path
from mimicry.sampling.plan import SampleSet, artists_of, conditions_of, pairs_for_sheet
from mimicry.study import NONE, SETTINGS_ENTRY, Artist, Condition, ImageFolder, State, StudyTree, read_rgb
from mimicry.tuning.options.click_options import option, options

_FONT = ("files", "SourceSansPro-Regular.ttf")
# No font has a letter for it, so what a font draws for it is what it draws for letters that it lacks.
_NO_LETTER = "\U0010fffe"


class Lettering:
    """Writes lines of text of one size, in pixels, onto a picture."""

    def __init__(self, pen: ImageDraw.ImageDraw, size: int) -> None:
        self._font = ImageFont.truetype(str(files("font_source_sans_pro").joinpath(*_FONT)), size)
        self._pen = pen
        self._has = cache(self._can_write)

    def write(
        self, corner: tuple[int, int], text: str, colour: tuple[int, int, int], width: float | None = None
    ) -> None:
        """Write a line with its upper left `corner`; with `width`, in pixels, as much of it as fits."""
        shown = self.writable(text)
        self._pen.text(corner, shown if width is None else self._fitting(shown, width), colour, self._font)

    def writable(self, text: str) -> str:
        """Return `text` on one line, with letters that the font lacks escaped as in Python."""
        composed = unicodedata.normalize("NFC", text)
        return "".join(
            letter
            if letter.isprintable() and self._has(letter)
            else letter.encode("unicode_escape", "backslashreplace").decode()
            for letter in composed
        )

    def _can_write(self, letter: str) -> bool:
        return letter == " " or bytes(self._font.getmask(letter)) != bytes(self._font.getmask(_NO_LETTER))

    def _fitting(self, text: str, width: float) -> str:
        if self._font.getlength(text) <= width:
            return text
        while text and self._font.getlength(text + "...") > width:
            text = text[:-1]
        return text + "..."


_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}
# The longest side that a format has, in pixels.
_LONGEST = {"JPEG": 65_500, "WEBP": 16_383}
_QUALITY = 92
_IMAGE_DESCRIPTION = 0x010E  # of EXIF
_DOTS_PER_INCH = 150


def save_sheet(path: Path, sheet: Image.Image, settings: Mapping[str, Any]) -> None:
    """Write `sheet`, in the format of the suffix of `path`, with `settings` as JSON in its metadata.

    That is a text entry of a PNG, the image description of EXIF data, or the subject of a PDF.

    Raises:
        BatchFault: the file cannot be written, or is too large for its format.
    """
    form = _FORMATS[path.suffix.lower()]
    longest = _LONGEST.get(form, max(sheet.size))
    if max(sheet.size) > longest:
        raise BatchFault(
            f"--contact-sheet {path}: it has {sheet.width}x{sheet.height} pixels, and {form} takes {longest} "
            f"a side; type {path.with_suffix('.png')}, or a smaller --sheet-tile"
        )
    try:
        with atomic_path(path) as temporary:
            sheet.save(temporary, format=form, **_arguments(form, json.dumps(settings, sort_keys=True)))
    except OSError as error:
        raise BatchFault(f"--contact-sheet {path} cannot be written: {error.strerror or error}") from error


def _arguments(form: str, settings: str) -> dict[str, Any]:
    if form == "PNG":
        metadata = PngImagePlugin.PngInfo()
        metadata.add_text(SETTINGS_ENTRY, settings)
        return {"pnginfo": metadata, "optimize": True}
    if form == "PDF":
        facts = {"title": "contact sheet", "subject": settings}
        return {**facts, "resolution": _DOTS_PER_INCH, "quality": _QUALITY}
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = settings
    return {"exif": exif, "quality": _QUALITY}


GAP = 4
MARGIN = 14
TEXT_HEIGHT = 18
_TEXT_SIZE, _LABEL_SIZE = 14, 12
DEFAULT_TILE, DEFAULT_PICTURES = 128, 4
_TOPIC = "Contact sheet"
_MIXED = "MIXED RECIPES: these adapters differ in more than their images; do not compare them across recipes."
_UNPAIRED = "UNPAIRED: the images of adapters so marked do not pair with the originals; do not compare them."
_WARNING = (190, 30, 30)
_PAPER, _INK, _LABEL, _MISSING = (255, 255, 255), (40, 40, 40), (90, 90, 90), (225, 225, 225)
# What of a picture's settings is its own.
_OF_ONE_PICTURE = ("adapter", "condition", "artist", "prompt", "seed")


def _checked_format(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--contact-sheet {path}: a sheet is {', '.join(_FORMATS)}; type {path.with_suffix('.png')}"
        )
    return path


_option = partial(option, topic=_TOPIC)
sheet_options = options(
    _option(
        "--contact-sheet",
        type=click.Path(path_type=Path, dir_okay=False),
        callback=_checked_format,
        help="Write a picture with a row for each artist: training pictures, base model, conditions. Implies "
        "--base. Its suffix says the format: .png, .jpg, .webp or .pdf.",
    ),
    _option(
        "--sheet-tile",
        type=click.IntRange(16, 2048),
        default=DEFAULT_TILE,
        help="Side of a picture on it, in pixels.",
    ),
    _option(
        "--sheet-pictures",
        type=click.IntRange(1, 100),
        default=DEFAULT_PICTURES,
        help="How many pictures of each artist and condition it shows at most.",
    ),
)


@dataclass(frozen=True)
class Layout:
    """The sizes of a sheet, in pixels: the side of a picture, and how many a cell has at most."""

    tile: int = DEFAULT_TILE
    pictures: int = DEFAULT_PICTURES

    @property
    def across(self) -> int:
        return math.ceil(math.sqrt(self.pictures))

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a cell: its pictures, each with a label below."""
        down = math.ceil(self.pictures / self.across)
        return self.across * (self.tile + GAP) - GAP, down * (self.tile + TEXT_HEIGHT)

    def left(self, column: int) -> int:
        return MARGIN + column * (self.cell[0] + MARGIN)

    def top(self, row: int) -> int:
        # For each artist a line of text, and the cells.
        return MARGIN + TEXT_HEIGHT + row * (TEXT_HEIGHT + self.cell[1] + MARGIN)

    def corner(self, row: int, column: int, place: int) -> tuple[int, int]:
        down, across = divmod(place, self.across)
        left = self.left(column) + across * (self.tile + GAP)
        return left, self.top(row) + TEXT_HEIGHT + down * (self.tile + TEXT_HEIGHT)


def write_contact_sheet(
    path: Path, tree: StudyTree, sets: Sequence[SampleSet], layout: Layout | None = None
) -> None:
    """Write the sheet of `sets` to `path`, in the format of its suffix.

    Columns are the artist's original pictures, the base model and each condition. Drawn pictures in the same
    place of a row have the same prompt and seed; their number below stands for these, as the foot says. What
    is not there, or is stale, stays grey. The sheet says where adapters have several recipes, or were trained
    on images that do not pair with the originals.

    Raises:
        BatchFault: the file cannot be written.
    """
    layout = layout or Layout()
    artists, conditions = artists_of(sets), conditions_of(sets)
    titles = ["training pictures", "base model", *map(_title, conditions)]
    pairs = {artist: pairs_for_sheet(sets, artist, layout.pictures) for artist in artists}
    distinct = dict.fromkeys(pair for own in pairs.values() for pair in own)
    numbers = {pair: number for number, pair in enumerate(distinct, start=1)}
    foot = [(f"{number}  {prompt}, seed {seed}", _INK) for (prompt, seed), number in numbers.items()]
    foot += [(_MIXED, _WARNING)] if any(found.recipe for found in sets) else []
    foot += [(_UNPAIRED, _WARNING)] if any(found.unpaired for found in sets) else []
    size = (layout.left(len(titles)), layout.top(len(artists)) + len(foot) * TEXT_HEIGHT + MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    text, label = Lettering(pen, _TEXT_SIZE), Lettering(pen, _LABEL_SIZE)
    width = layout.cell[0]
    for column, title in enumerate(titles):
        text.write((layout.left(column), MARGIN // 2), title, _INK, width)
    for row, artist in enumerate(artists):
        top = layout.top(row)
        text.write((layout.left(0), top), str(artist), _INK, width)
        for column, condition in enumerate(conditions, start=2):
            warning = _warning_of(sets, artist, condition)
            text.write((layout.left(column), top), warning, _WARNING, width)
        for column, places in enumerate(
            _cells(tree, sets, artist, conditions, pairs[artist], numbers, layout)
        ):
            for number, (file, name) in enumerate(places):
                left, upper = layout.corner(row, column, number)
                sheet.paste(_tile(file, layout.tile), (left, upper))
                label.write((left, upper + layout.tile + 1), name, _LABEL, layout.tile)
    for line, (words, colour) in enumerate(foot):
        text.write((MARGIN, layout.top(len(artists)) + line * TEXT_HEIGHT), words, colour)
    save_sheet(path, sheet, _settings(sets, numbers, layout))


def _cells(
    tree: StudyTree,
    sets: Sequence[SampleSet],
    artist: Artist,
    conditions: Sequence[Condition],
    pairs: Sequence[tuple[str, int]],
    numbers: Mapping[tuple[str, int], int],
    layout: Layout,
) -> list[list[tuple[Path | None, str]]]:
    """Return the file, None where it is not there, and the label of each place in an artist's row."""
    paintings = ImageFolder.read(tree.images_of(tree.original_art, artist)).paths[: layout.pictures]
    cells: list[list[tuple[Path | None, str]]] = [[(path, path.stem) for path in paintings]]
    for condition in (None, *conditions):
        files = {
            (picture.prompt, picture.seed): picture.path
            for found in sets
            if found.condition == condition and found.artist == (artist if condition else None)
            for picture in found.pictures
            if picture.state is not State.STALE
        }
        cells.append([(files.get(pair), str(numbers[pair])) for pair in pairs])
    return cells


def _settings(
    sets: Sequence[SampleSet], numbers: Mapping[tuple[str, int], int], layout: Layout
) -> dict[str, Any]:
    found = [
        {name: value for name, value in picture.settings.items() if name not in _OF_ONE_PICTURE}
        for one in sets
        for picture in one.pictures
    ]
    shared = {
        name: value
        for name, value in (found[0] if found else {}).items()
        if all(other.get(name) == value for other in found)
    }
    pictures = [{"number": number, "prompt": pair[0], "seed": pair[1]} for pair, number in numbers.items()]
    return {"tile": layout.tile, "pictures": pictures, "settings": shared}


def _warning_of(sets: Sequence[SampleSet], artist: Artist, condition: Condition) -> str:
    """Return, in a few words, why a cell is not drawn, or why its adapter may not compare with others."""
    for found in sets:
        if (found.artist, found.condition) == (artist, condition):
            if found.problem:
                return f"not drawn: {found.problem}"
            return "; ".join(filter(None, ("unpaired" if found.unpaired else "", found.recipe)))
    return ""


def _tile(file: Path | None, side: int) -> Image.Image:
    try:
        picture = None if file is None else read_rgb(file)
    except OSError:
        picture = None
    if picture is None:
        return Image.new("RGB", (side, side), _MISSING)
    shorter = min(picture.size)
    left, upper = (picture.width - shorter) // 2, (picture.height - shorter) // 2
    box = (left, upper, left + shorter, upper + shorter)
    return picture.resize((side, side), Image.Resampling.LANCZOS, box=box)


def _title(condition: Condition) -> str:
    names = (name for name in (condition.protection, condition.countermeasure) if name != NONE)
    return " + ".join(names) or "original"
