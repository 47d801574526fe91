"""Text on pictures: names with accents as they are, and no letter lost."""

import unicodedata

import pytest
from PIL import Image, ImageDraw

from mimicry.sampling.contact_sheet import Lettering

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
