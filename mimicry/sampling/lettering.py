"""Text on pictures, in a font with the accents of Latin, Greek and Cyrillic letters."""

import unicodedata
from functools import cache
from importlib.resources import files

from PIL import ImageDraw, ImageFont

_FONT = ("font_source_sans_pro", "files", "SourceSansPro-Regular.ttf")
# No font has a letter for it, so what a font draws for it is what it draws for letters that it lacks.
_NO_LETTER = "\U0010fffe"


class Lettering:
    """Writes lines of text of one size, in pixels, onto a picture."""

    def __init__(self, pen: ImageDraw.ImageDraw, size: int) -> None:
        package, *parts = _FONT
        self._font = ImageFont.truetype(str(files(package).joinpath(*parts)), size)
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
