"""The scenes: their sizes, and that their subjects can be seen."""

import numpy as np
import pytest

from mimicry.demo.paintings import SUBJECTS, Colour, draw_scene, draw_size, generator, shift_colour
from mimicry.demo.study import PAINTERS

PALETTE = PAINTERS[0].palettes[0]


def test_sizes_stay_in_bounds_and_differ_in_shape() -> None:
    sizes = [draw_size(generator(7, "size", index)) for index in range(400)]

    assert min(min(size) for size in sizes) >= 64
    assert max(max(size) for size in sizes) <= 112
    assert {width < height for width, height in sizes if width != height} == {True, False}
    assert any(width == height for width, height in sizes)


@pytest.mark.parametrize(
    ("subject", "colour"),
    [
        ("house", PALETTE.roof),
        ("tree", PALETTE.foliage),
        ("boat", PALETTE.sail),
        ("boat", PALETTE.water),
        ("sun", PALETTE.sun),
        ("hills", PALETTE.hill),
    ],
)
def test_a_subject_shows_in_its_colour(subject: str, colour: Colour) -> None:
    pixels = np.asarray(draw_scene(generator(7, "subject"), (160, 120), subject, PALETTE), dtype=int)

    # A palette varies by 14, and hills and crowns by 20 more, in each channel.
    near = (np.abs(pixels - np.array(colour)).max(axis=-1) <= 34).mean()

    assert near > 0.003


def test_subjects_look_different() -> None:
    scenes = [draw_scene(generator(7, "same"), (96, 96), subject, PALETTE).tobytes() for subject in SUBJECTS]

    assert len(set(scenes)) == len(SUBJECTS)


def test_a_shifted_colour_is_a_colour() -> None:
    shifted = [shift_colour((0, 128, 255), generator(7, index), 20) for index in range(50)]

    assert all(0 <= channel <= 255 for colour in shifted for channel in colour)
    assert all(abs(green - 128) <= 20 for _, green, _ in shifted)
    assert len(set(shifted)) > 25


def test_numbers_are_the_same_everywhere() -> None:
    drawn = generator(7, "impressionism", "Zoé_Marchais", 3, "scene").integers(0, 1 << 32, 4)

    assert drawn.tolist() == [3807103967, 587978908, 1233064450, 1457100338]


@pytest.mark.parametrize("names", [("a", "bc"), ("ab", "c"), ("a", "b", "c"), ("a", 1), ("a", "1")])
def test_other_names_give_other_numbers(names: tuple[str | int, ...]) -> None:
    reference = generator(7, "abc").random(8).tolist()

    assert generator(7, *names).random(8).tolist() != reference
    assert generator(8, "abc").random(8).tolist() != reference
    assert generator(7, "abc").random(8).tolist() == reference


def test_a_number_and_its_digits_are_different_names() -> None:
    assert generator(7, 1).random() != generator(7, "1").random()
