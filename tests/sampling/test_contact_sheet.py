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
    return SampleSet(adapter=adapter, config=CONFIG, pictures=found)


def at(sheet: Image.Image, row: int, column: int, place: int) -> object:
    down, across = divmod(place, 2)
    left = MARGIN + column * (CELL + MARGIN) + across * (TILE + GAP)
    top = MARGIN + 2 * TEXT_HEIGHT + row * (CELL + TEXT_HEIGHT + MARGIN) + down * (TILE + GAP)
    return sheet.getpixel((left + TILE // 2, top + TILE // 2))


def test_every_picture_is_in_its_place(tmp_path: Path) -> None:
    tree = StudyTree(tmp_path / "study")
    for index in range(5):
        paint(tree.images_of(tree.original_art, ANNA) / f"{index}.png", index)
    base = SampleSet(config=CONFIG, pictures=pictures(tmp_path / "base", 6))
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


def test_several_recipes_are_marked_on_the_sheet(tmp_path: Path) -> None:
    tree = StudyTree(tmp_path / "study")
    one = drawn(ORIGINAL, ANNA, pictures(tmp_path / "a", 9))
    other = drawn(MIST, ANNA, pictures(tmp_path / "b", 12))
    longest = "recipe 2: " + "max_train_steps 500 -> 30, " * 20

    def sheet_of(*sets: SampleSet) -> Image.Image:
        write_contact_sheet(tmp_path / "sheet.png", tree, sets)
        with Image.open(tmp_path / "sheet.png") as sheet:
            return sheet.convert("RGB")

    def red(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
        part = sheet.crop(box)
        return any(
            isinstance(pixel := part.getpixel((x, y)), tuple) and pixel[0] - pixel[1] > 60
            for x in range(part.width)
            for y in range(part.height)
        )

    plain = sheet_of(one, other)
    mixed = sheet_of(replace(one, recipe="recipe 1"), replace(other, recipe=longest))

    assert mixed.height == plain.height + TEXT_HEIGHT
    top = MARGIN + TEXT_HEIGHT
    for column, marked in ((0, False), (1, False), (2, True), (3, True)):
        left = MARGIN + column * (CELL + MARGIN)
        assert red(mixed, (left, top, left + CELL, top + TEXT_HEIGHT)) == marked
        assert not red(mixed, (left + CELL, top, left + CELL + MARGIN, top + TEXT_HEIGHT))
        assert not red(plain, (left, top, left + CELL, top + TEXT_HEIGHT))
    assert red(mixed, (0, plain.height, mixed.width, mixed.height))
    refused = sheet_of(one, replace(other, pictures=(), problem="its record is of another condition"))
    left = MARGIN + 3 * (CELL + MARGIN)
    assert red(refused, (left, top, left + CELL, top + TEXT_HEIGHT))
