"""Random numbers are the same on every machine, and each drawing has its own."""

import pytest

from mimicry.demo.paintings import generator


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
