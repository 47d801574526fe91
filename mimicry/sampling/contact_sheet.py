"""The contact sheet: a row for each artist, and in it what was painted, and what was drawn, side by side."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mimicry.common.errors import BatchFault
from mimicry.common.files import atomic_path
from mimicry.sampling.plan import SampleSet, artists_of, conditions_of, pairs_for_sheet
from mimicry.study import Artist, Condition, ImageFolder, State, StudyTree
from mimicry.study.images import read_rgb
from mimicry.study.tree import NONE

_ACROSS = 2
_SHOWN = _ACROSS * _ACROSS
TILE = 96
GAP = 2
MARGIN = 12
TEXT_HEIGHT = 16
_MIXED = "MIXED RECIPES: these adapters differ in more than their images; do not compare them across recipes."
_UNPAIRED = "UNPAIRED: the images of adapters so marked do not pair with the originals; do not compare them."
_WARNING = (190, 30, 30)
_PAPER, _INK, _MISSING = (255, 255, 255), (40, 40, 40), (225, 225, 225)
CELL = _ACROSS * TILE + (_ACROSS - 1) * GAP


def write_contact_sheet(path: Path, tree: StudyTree, sets: Sequence[SampleSet]) -> None:
    """Write the sheet of `sets` as a PNG to `path`.

    Columns are the artist's original pictures, the base model and each condition. Within a row all drawn
    pictures in the same place have the same prompt and seed. What is not there, or is stale, stays grey.
    Where adapters have several recipes, the sheet says so, and above each cell which one it is of; likewise
    where adapters were trained on images that do not pair with the originals.

    Raises:
        BatchFault: the file cannot be written.
    """
    artists, conditions = artists_of(sets), conditions_of(sets)
    titles = ["training pictures", "base model", *map(_title, conditions)]
    notes = [
        *([_MIXED] if any(found.recipe for found in sets) else []),
        *([_UNPAIRED] if any(found.unpaired for found in sets) else []),
    ]
    row_height = CELL + TEXT_HEIGHT + MARGIN
    size = (
        MARGIN + len(titles) * (CELL + MARGIN),
        MARGIN + TEXT_HEIGHT + len(artists) * row_height + len(notes) * TEXT_HEIGHT,
    )
    sheet = Image.new("RGB", size, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, title in enumerate(titles):
        pen.text((_left(column), MARGIN // 2), title, fill=_INK, font=font)
    for row, artist in enumerate(artists):
        top = MARGIN + TEXT_HEIGHT + row * row_height
        pen.text((_left(0), top), _printable(str(artist)), fill=_INK, font=font)
        for column, condition in enumerate(conditions, start=2):
            warning = _warning_of(sets, artist, condition)
            pen.text((_left(column), top), _fitting(pen, _printable(warning)), fill=_WARNING, font=font)
        for column, files in enumerate(_cells(tree, sets, artist, conditions)):
            for place, file in enumerate(files):
                down, across = divmod(place, _ACROSS)
                corner = (_left(column) + across * (TILE + GAP), top + TEXT_HEIGHT + down * (TILE + GAP))
                sheet.paste(_tile(file), corner)
    for place, note in enumerate(reversed(notes), start=1):
        pen.text((MARGIN, size[1] - place * TEXT_HEIGHT), note, fill=_WARNING, font=font)
    try:
        with atomic_path(path) as temporary:
            sheet.save(temporary, format="PNG", optimize=True)
    except OSError as error:
        raise BatchFault(f"--contact-sheet {path} cannot be written: {error.strerror}") from error


def _cells(
    tree: StudyTree, sets: Sequence[SampleSet], artist: Artist, conditions: Sequence[Condition]
) -> list[list[Path | None]]:
    """Return the files of each cell in an artist's row; None for a picture that is not there."""
    pairs = pairs_for_sheet(sets, artist, _SHOWN)
    paintings = ImageFolder.read(tree.images_of(tree.original_art, artist)).paths
    cells: list[list[Path | None]] = [list(paintings[:_SHOWN])]
    for condition in (None, *conditions):
        files = {
            (picture.prompt, picture.seed): picture.path
            for found in sets
            if found.condition == condition and found.artist == (artist if condition else None)
            for picture in found.pictures
            if picture.state is not State.STALE
        }
        cells.append([files.get(pair) for pair in pairs])
    return cells


def _warning_of(sets: Sequence[SampleSet], artist: Artist, condition: Condition) -> str:
    """Return what stands above a cell: that it is not drawn, or why its adapter may not compare with others.

    There is room for a few words; `mimicry samples` prints the whole.
    """
    place = (artist, condition)
    found = next((found for found in sets if (found.artist, found.condition) == place), None)
    if found is None:
        return ""
    if found.problem:
        return f"not drawn: {found.problem}"
    return "; ".join(filter(None, ("unpaired" if found.unpaired else "", found.recipe)))


def _fitting(pen: ImageDraw.ImageDraw, text: str) -> str:
    """Return as much of `text` as fits above a cell."""
    if pen.textlength(text) <= CELL:
        return text
    while text and pen.textlength(text + "...") > CELL:
        text = text[:-1]
    return text + "..."


def _tile(file: Path | None) -> Image.Image:
    try:
        picture = None if file is None else read_rgb(file)
    except OSError:
        picture = None
    if picture is None:
        return Image.new("RGB", (TILE, TILE), _MISSING)
    side = min(picture.size)
    left, upper = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, upper, left + side, upper + side)
    return picture.resize((TILE, TILE), Image.Resampling.LANCZOS, box=box)


def _title(condition: Condition) -> str:
    if condition == Condition():
        return "original"
    names = [name for name in (condition.protection, condition.countermeasure) if name != NONE]
    return _printable(" + ".join(names))


def _printable(text: str) -> str:
    # The font that is always there has no other letters.
    return text.encode("latin-1", "replace").decode("latin-1")


def _left(column: int) -> int:
    return MARGIN + column * (CELL + MARGIN)
