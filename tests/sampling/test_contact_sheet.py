"""The contact sheet: every picture in its place, and grey where there is none."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from mimicry.common.errors import BatchFault
from mimicry.common.processes import run_command
from mimicry.sampling.contact_sheet import MARGIN, TEXT_HEIGHT, Layout, Lettering, write_contact_sheet
from mimicry.sampling.draw_samples import draw_samples
from mimicry.sampling.plan import Picture, SampleSet
from mimicry.study.tree import AdapterId, Artist, Condition, State, StudyTree
from tests.small_study import ANNA, BORIS, CONFIG, MIST, ORIGINAL

GREY, WHITE = (225, 225, 225), (255, 255, 255)
LAYOUT = Layout()
WIDTH = LAYOUT.cell[0]


def colour(number: int) -> tuple[int, int, int]:
    return (10 * number, 200 - 7 * number, 40)


def paint(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), colour(number)).save(path)
    return path


def pictures(folder: Path, first: int, state: State = State.WAITING) -> tuple[Picture, ...]:
    return tuple(
        Picture(paint(folder / f"{index}.png", first + index), f"prompt {index}", 0, {}, state)
        for index in range(3)
    )


def drawn(condition: Condition, artist: Artist, found: tuple[Picture, ...]) -> SampleSet:
    adapter = AdapterId("hf_diffusers", condition, artist)
    return SampleSet(adapter=adapter, folder=Path("unused"), config=CONFIG, pictures=found)


def at(sheet: Image.Image, row: int, column: int, place: int, layout: Layout = LAYOUT) -> object:
    left, top = layout.corner(row, column, place)
    return sheet.getpixel((left + layout.tile // 2, top + layout.tile // 2))


def test_every_picture_is_in_its_place(tmp_path: Path) -> None:
    tree = StudyTree(tmp_path / "study")
    for index in range(5):
        paint(tree.images_of(tree.original_art, ANNA) / f"{index}.png", index)
    base = SampleSet(folder=tmp_path / "base", config=CONFIG, pictures=pictures(tmp_path / "base", 6))
    sets = [
        base,
        drawn(ORIGINAL, ANNA, pictures(tmp_path / "a", 9)),
        drawn(MIST, ANNA, pictures(tmp_path / "b", 12, State.STALE)),
        drawn(MIST, BORIS, pictures(tmp_path / "c", 15)),
    ]
    (tmp_path / "c" / "1.png").write_bytes(b"damaged")
    path = tmp_path / "new folder" / "sheet.png"

    write_contact_sheet(path, tree, sets)

    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        sheet.load()
    assert [at(sheet, 0, 0, place) for place in range(4)] == [colour(number) for number in range(4)]
    assert [at(sheet, 0, 1, place) for place in range(4)] == [*map(colour, (6, 7, 8)), WHITE]
    assert [at(sheet, 0, 2, place) for place in range(3)] == [*map(colour, (9, 10, 11))]
    assert [at(sheet, 0, 3, place) for place in range(3)] == [GREY] * 3
    assert [at(sheet, 1, 0, place) for place in range(3)] == [WHITE] * 3
    assert [at(sheet, 1, 1, place) for place in range(3)] == [*map(colour, (6, 7, 8))]
    assert [at(sheet, 1, 2, place) for place in range(3)] == [GREY] * 3
    assert [at(sheet, 1, 3, place) for place in range(3)] == [colour(15), GREY, colour(17)]


def test_a_sheet_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BatchFault, match="--contact-sheet"):
        write_contact_sheet(tmp_path / "file" / "sheet.png", StudyTree(tmp_path), [])


def is_red(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Return whether anything red, a warning, stands in a box: left, upper, right, lower."""
    part = sheet.crop(box)
    return any(
        isinstance(pixel := part.getpixel((x, y)), tuple) and pixel[0] - pixel[1] > 60
        for x in range(part.width)
        for y in range(part.height)
    )


def above(column: int) -> tuple[int, int, int, int]:
    """Return the place of the warning above a cell of the first row."""
    left, top = LAYOUT.left(column), LAYOUT.top(0)
    return left, top, left + WIDTH, top + TEXT_HEIGHT


class TestMarks:
    LONGEST = "recipe 2: " + "max_train_steps 500 -> 30, " * 20

    @pytest.fixture
    def one(self, tmp_path: Path) -> SampleSet:
        return drawn(ORIGINAL, ANNA, pictures(tmp_path / "a", 9))

    @pytest.fixture
    def other(self, tmp_path: Path) -> SampleSet:
        return drawn(MIST, ANNA, pictures(tmp_path / "b", 12))

    @staticmethod
    def sheet_of(folder: Path, *sets: SampleSet) -> Image.Image:
        write_contact_sheet(folder / "sheet.png", StudyTree(folder / "study"), sets)
        with Image.open(folder / "sheet.png") as sheet:
            return sheet.convert("RGB")

    def test_several_recipes_are_marked_on_the_sheet(
        self, tmp_path: Path, one: SampleSet, other: SampleSet
    ) -> None:
        plain = self.sheet_of(tmp_path, one, other)
        mixed = self.sheet_of(tmp_path, replace(one, recipe="recipe 1"), replace(other, recipe=self.LONGEST))

        assert mixed.height == plain.height + TEXT_HEIGHT
        for column, marked in ((0, False), (1, False), (2, True), (3, True)):
            _, top, right, bottom = above(column)
            assert is_red(mixed, above(column)) == marked
            assert not is_red(mixed, (right, top, right + MARGIN, bottom))
            assert not is_red(plain, above(column))
        assert is_red(mixed, (0, plain.height, mixed.width, mixed.height))

    def test_what_is_not_drawn_says_so(self, tmp_path: Path, one: SampleSet, other: SampleSet) -> None:
        problem = "its record is of another condition"
        refused = self.sheet_of(tmp_path, one, replace(other, pictures=(), problem=problem))
        assert [is_red(refused, above(column)) for column in (2, 3)] == [False, True]

    def test_an_unpaired_adapter_is_marked_with_a_line_at_the_foot(
        self, tmp_path: Path, one: SampleSet, other: SampleSet
    ) -> None:
        plain = self.sheet_of(tmp_path, one, other)
        marked = self.sheet_of(tmp_path, one, replace(other, unpaired="no image for 'lake'"))

        assert marked.height == plain.height + TEXT_HEIGHT
        assert [is_red(marked, above(column)) for column in (2, 3)] == [False, True]
        assert is_red(marked, (0, plain.height, marked.width, marked.height))
        assert not is_red(marked, (marked.width - MARGIN, plain.height, marked.width, marked.height))

    def test_both_marks_stand_above_a_cell_and_at_the_foot(
        self, tmp_path: Path, one: SampleSet, other: SampleSet
    ) -> None:
        plain = self.sheet_of(tmp_path, one, other)
        sets = [replace(one, recipe="recipe 1"), replace(other, recipe="recipe 2")]
        mixed = self.sheet_of(tmp_path, *sets)
        both = self.sheet_of(tmp_path, sets[0], replace(sets[1], unpaired="no image for 'lake'"))

        assert both.height == plain.height + 2 * TEXT_HEIGHT
        for line in range(2):
            top = plain.height + line * TEXT_HEIGHT
            assert is_red(both, (0, top, both.width, top + TEXT_HEIGHT))
        assert both.crop(above(2)).tobytes() == mixed.crop(above(2)).tobytes()
        # "unpaired" stands before the recipe.
        assert both.crop(above(3)).tobytes() != mixed.crop(above(3)).tobytes()


def some_sets(folder: Path, count: int = 6) -> list[SampleSet]:
    found = tuple(
        Picture(
            paint(folder / f"{index}.png", index),
            f"prompt {index % 3}",
            index // 3,
            {"prompt": f"prompt {index % 3}", "seed": index // 3, "steps": 28, "adapter": str(index)},
            State.COMPLETE,
        )
        for index in range(count)
    )
    return [drawn(MIST, ANNA, found)]


def metadata(path: Path) -> Any:
    """Return the settings that a sheet holds, wherever its format has them."""
    if path.suffix == ".pdf":
        content = path.read_bytes()
        subject = content[content.index(b"/Subject") :]
        text = (
            subject[subject.index(b"(") + 1 : subject.index(b")\n")]
            .replace(b"\\(", b"(")
            .replace(b"\\)", b")")
        )
        return json.loads(text.decode("utf-16") if text.startswith(b"\xfe\xff") else text)
    with Image.open(path) as sheet:
        sheet.load()
        return json.loads(sheet.info["mimicry"] if path.suffix == ".png" else sheet.getexif()[0x010E])


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("s.png", b"\x89PNG"),
        ("s.JPG", b"\xff\xd8"),
        ("s.jpeg", b"\xff\xd8"),
        ("s.webp", b"RIFF"),
        ("s.pdf", b"%PDF"),
    ],
)
def test_the_suffix_says_the_format_and_the_file_its_settings(
    tmp_path: Path, name: str, begin: bytes
) -> None:
    path = tmp_path / name

    write_contact_sheet(path, StudyTree(tmp_path / "study"), some_sets(tmp_path), Layout(tile=32, pictures=4))

    assert path.read_bytes().startswith(begin)
    assert metadata(path.rename(path.with_suffix(path.suffix.lower()))) == {
        "tile": 32,
        "pictures": [
            {"number": 1, "prompt": "prompt 0", "seed": 0},
            {"number": 2, "prompt": "prompt 1", "seed": 0},
            {"number": 3, "prompt": "prompt 2", "seed": 0},
            {"number": 4, "prompt": "prompt 0", "seed": 1},
        ],
        "settings": {"steps": 28},
    }


def test_another_suffix_is_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(draw_samples, [f"--data-root={tmp_path}", f"--contact-sheet={tmp_path}/x.gif"]) == 2
    assert f"{tmp_path}/x.png" in capsys.readouterr().err


def test_a_sheet_too_large_for_its_format_is_said(tmp_path: Path) -> None:
    with pytest.raises(BatchFault, match="--sheet-tile"):
        write_contact_sheet(
            tmp_path / "s.webp",
            StudyTree(tmp_path / "study"),
            some_sets(tmp_path),
            Layout(tile=2048, pictures=9),
        )


def test_tiles_and_their_number_are_chosen(tmp_path: Path) -> None:
    tree = StudyTree(tmp_path / "study")
    for index in range(9):
        paint(tree.images_of(tree.original_art, ANNA) / f"{index}.png", index)
    layout = Layout(tile=48, pictures=6)

    write_contact_sheet(tmp_path / "sheet.png", tree, some_sets(tmp_path), layout)

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert layout.across == 3
        for column in (0, 2):
            shown = [at(sheet, 0, column, place, layout) for place in range(6)]
            assert shown == [colour(number) for number in range(6)]


def has_ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return any(low < 200 for low, _ in sheet.crop(box).convert("RGB").getextrema())  # type: ignore[misc]


def test_every_picture_has_a_number_and_the_foot_says_of_what(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.png", StudyTree(tmp_path / "study"), some_sets(tmp_path, 3))

    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()
    for place in range(4):
        left, top = LAYOUT.corner(0, 2, place)
        label = (left, top + LAYOUT.tile + 1, left + 20, top + LAYOUT.tile + TEXT_HEIGHT)
        assert has_ink(sheet, label) == (place < 3)
    for line in range(3):
        top = LAYOUT.top(1) + line * TEXT_HEIGHT
        assert has_ink(sheet, (MARGIN, top, sheet.width, top + TEXT_HEIGHT))
    assert sheet.height == LAYOUT.top(1) + 3 * TEXT_HEIGHT + MARGIN


INK, PAPER = (0, 0, 0), (255, 255, 255)


@pytest.fixture
def sheet() -> Image.Image:
    return Image.new("RGB", (300, 40), PAPER)


@pytest.fixture
def lettering(sheet: Image.Image) -> Lettering:
    return Lettering(ImageDraw.Draw(sheet), 16)


@pytest.mark.parametrize(
    "name", ["Zoé", "Čapek", "Łukasz Żółć", "Ağaoğlu", "Brâncuși", "Ønskeskjær", "Ωmega", "Шишкин"]
)
def test_names_are_written_as_they_are(lettering: Lettering, name: str) -> None:
    assert lettering.writable(name) == name
    assert lettering.writable(unicodedata.normalize("NFD", name)) == name


def test_an_accent_is_seen(sheet: Image.Image, lettering: Lettering) -> None:
    lettering.write((0, 0), "Zoé", INK)
    accented = sheet.copy()
    sheet.paste(PAPER, (0, 0, *sheet.size))
    lettering.write((0, 0), "Zoe", INK)

    assert accented.tobytes() != sheet.tobytes()


def test_what_the_font_lacks_is_escaped(lettering: Lettering) -> None:
    assert lettering.writable("北斎") == r"\u5317\u658e"
    assert lettering.writable("a\nb\x1b\udc80") == r"a\nb\x1b\udc80"


def test_a_long_line_is_cut_where_it_must_end(sheet: Image.Image, lettering: Lettering) -> None:
    lettering.write((10, 5), "a line that is much too long " * 9, INK, width=100)

    box = sheet.convert("L").point([255 if value < 128 else 0 for value in range(256)]).getbbox()
    assert box is not None
    assert box[2] <= 110
