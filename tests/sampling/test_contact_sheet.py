"""The contact sheet: every picture in its place, and grey where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mimicry.common.errors import BatchFault
from mimicry.sampling.contact_sheet import CELL, GAP, MARGIN, TEXT_HEIGHT, TILE, write_contact_sheet
from mimicry.sampling.plan import Picture, SampleSet
from mimicry.study.states import State
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from tests.small_study import ANNA, BORIS, CONFIG, MIST, ORIGINAL

GREY, WHITE = (225, 225, 225), (255, 255, 255)


def colour(number: int) -> tuple[int, int, int]:
    return (10 * number, 200 - 7 * number, 40)


def paint(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), colour(number)).save(path)
    return path


def pictures(folder: Path, first: int, state: State = State.PENDING) -> tuple[Picture, ...]:
    return tuple(
        Picture(paint(folder / f"{index}.png", first + index), f"prompt {index}", 0, {}, state)
        for index in range(3)
    )


def drawn(condition: Condition, artist: Artist, found: tuple[Picture, ...]) -> SampleSet:
    adapter = AdapterId("hf_diffusers", condition, artist)
    return SampleSet(adapter=adapter, folder=Path("unused"), config=CONFIG, pictures=found)


def at(sheet: Image.Image, row: int, column: int, place: int) -> object:
    down, across = divmod(place, 2)
    left = MARGIN + column * (CELL + MARGIN) + across * (TILE + GAP)
    top = MARGIN + 2 * TEXT_HEIGHT + row * (CELL + TEXT_HEIGHT + MARGIN) + down * (TILE + GAP)
    return sheet.getpixel((left + TILE // 2, top + TILE // 2))


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
    left, top = MARGIN + column * (CELL + MARGIN), MARGIN + TEXT_HEIGHT
    return left, top, left + CELL, top + TEXT_HEIGHT


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
