"""Which images differ from the recorded ones, in words."""

from typing import Any

from mimicry.study.image_differences import describe_other_images

KEYS = ("name", "size")


def image(name: str, size: int = 1) -> dict[str, Any]:
    return {"name": name, "size": size}


def test_each_kind_of_difference_names_its_images() -> None:
    recorded = [image("a.png"), image("b.png"), image("c.png")]
    present = [image("a.png"), image("b.png", 2), image("d.png")]
    assert describe_other_images(recorded, present, KEYS) == (
        "other images: changed 'b.png'; new 'd.png'; gone 'c.png'"
    )


def test_many_are_counted() -> None:
    present = [image(f"{number:02}.png") for number in range(20)]
    assert describe_other_images([], present, KEYS) == (
        "other images: new '00.png', '01.png', '02.png' and 17 more"
    )


def test_the_same_images_in_another_order() -> None:
    recorded = [image("a.png"), image("b.png")]
    assert describe_other_images(recorded, recorded[::-1], KEYS) == "other images: in another order"
