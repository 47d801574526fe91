"""The scenes that the painters of the demo paint: landscapes with hills, a house, trees, a boat or the sun.

Coordinates are fractions of the picture, from the top left corner; sizes are fractions of its shorter side.
"""

import hashlib
from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image, ImageDraw

from mimicry.common.files import canonical_json

Rng = np.random.Generator


def generator(seed: int, *names: str | int) -> Rng:
    """Return numpy's counter-based generator of `seed` and `names`, on which alone a painting depends."""
    digest = hashlib.sha256(canonical_json([seed, *names]).encode("utf-8")).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


SUBJECTS = ("hills", "house", "tree", "boat", "sun")

Colour = tuple[int, int, int]
Point = tuple[float, float]

# Drawn larger and scaled down, because Pillow's shapes have no smooth edges.
_SUPERSAMPLING = 2
# Not much larger than the model sees them: more would be scaled down anyway, and take longer to protect.
_SHORTEST_SIDE, _LONGEST_SIDE = 64, 112
_ASPECT_RATIOS = (1.0, 1.2, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class Palette:
    sky_above: Colour
    sky_below: Colour
    sun: Colour
    hill: Colour
    ground: Colour
    water: Colour
    foliage: Colour
    wood: Colour
    wall: Colour
    roof: Colour
    sail: Colour

    def varied(self, rng: Rng, amount: int = 14) -> "Palette":
        """Return the palette with every colour shifted by up to `amount` of 255 in each channel."""
        shifted = {field.name: shift_colour(getattr(self, field.name), rng, amount) for field in fields(self)}
        return replace(self, **shifted)


def shift_colour(colour: Colour, rng: Rng, amount: int) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-amount, amount, 3, endpoint=True), 0, 255)
    return int(red), int(green), int(blue)


def draw_size(rng: Rng) -> tuple[int, int]:
    """Return width and height, 64 to 112 pixels each: portrait, square or landscape."""
    ratio = _ASPECT_RATIOS[rng.integers(len(_ASPECT_RATIOS))]
    shorter = int(rng.integers(_SHORTEST_SIDE, int(_LONGEST_SIDE / ratio), endpoint=True))
    longer = round(shorter * ratio)
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def draw_scene(rng: Rng, size: tuple[int, int], subject: str, palette: Palette) -> Image.Image:
    """Return a plain scene of `subject` (one of SUBJECTS), RGB, `size` = (width, height) in pixels."""
    scene = _Scene(rng, size, palette.varied(rng))
    scene.sky_and_land(over_water=subject == "boat")
    if subject == "sun" or rng.random() < 0.15:
        scene.sun(radius=rng.uniform(0.1, 0.15) if subject == "sun" else 0.06)
    for _ in range(3 if subject == "hills" else 1):
        scene.hill(height=rng.uniform(0.2, 0.38) if subject == "hills" else rng.uniform(0.06, 0.16))
    if subject == "house":
        scene.house()
    if subject == "tree":
        for _ in range(rng.integers(1, 4)):
            scene.tree()
    if subject == "boat":
        scene.boat()
    return scene.image.resize(size, Image.Resampling.LANCZOS)


class _Scene:
    def __init__(self, rng: Rng, size: tuple[int, int], palette: Palette) -> None:
        self.rng, self.palette = rng, palette
        self.width, self.height = (side * _SUPERSAMPLING for side in size)
        self.unit = min(self.width, self.height)
        self.image = Image.new("RGB", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image)
        self.horizon = self.height * rng.uniform(0.48, 0.66)

    def sky_and_land(self, *, over_water: bool) -> None:
        above, below = np.array(self.palette.sky_above), np.array(self.palette.sky_below)
        for row in range(int(self.horizon) + 1):
            blend = row / self.horizon
            red, green, blue = (above * (1 - blend) + below * blend).astype(int).tolist()
            self.pen.line([(0, row), (self.width, row)], fill=(red, green, blue))
        land = self.palette.water if over_water else self.palette.ground
        self.pen.rectangle([0, self.horizon, self.width, self.height], fill=land)

    def sun(self, radius: float) -> None:
        x = self.width * self.rng.uniform(0.2, 0.8)
        y = self.horizon * self.rng.uniform(0.2, 0.6)
        self._ellipse((x, y), radius * self.unit, radius * self.unit, self.palette.sun)

    def hill(self, height: float) -> None:
        """Draw a polygon of five corners that rises `height` above the horizon."""
        peak = self.width * self.rng.uniform(0.0, 1.0), self.horizon - height * self.unit
        half = self.unit * self.rng.uniform(0.35, 0.7)
        shoulder = height * self.unit * self.rng.uniform(0.4, 0.75)
        self._polygon(
            [
                (peak[0] - half, self.horizon + 1),
                (peak[0] - half * 0.4, self.horizon - shoulder),
                peak,
                (peak[0] + half * 0.45, self.horizon - shoulder * 0.9),
                (peak[0] + half, self.horizon + 1),
            ],
            shift_colour(self.palette.hill, self.rng, 18),
        )

    def house(self) -> None:
        side = self.unit * self.rng.uniform(0.2, 0.32)
        left, base = self.width * self.rng.uniform(0.2, 0.6), self.horizon + side * self.rng.uniform(0.2, 0.5)
        eaves, right = base - side * 0.8, left + side
        self.pen.rectangle([left, eaves, right, base], fill=self.palette.wall)
        ridge = (left + side / 2, eaves - side * 0.6)
        self._polygon([(left - side * 0.12, eaves), ridge, (right + side * 0.12, eaves)], self.palette.roof)
        door = [left + side * 0.4, base - side * 0.45, left + side * 0.62, base]
        self.pen.rectangle(door, fill=self.palette.wood)

    def tree(self) -> None:
        size = self.unit * self.rng.uniform(0.14, 0.24)
        x = self.width * self.rng.uniform(0.15, 0.85)
        base = self.horizon + size * self.rng.uniform(0.2, 0.9)
        self.pen.rectangle([x - size * 0.1, base - size, x + size * 0.1, base], fill=self.palette.wood)
        crown = shift_colour(self.palette.foliage, self.rng, 20)
        self._ellipse((x, base - size * 1.4), size * 0.6, size * 0.75, crown)

    def boat(self) -> None:
        size = self.unit * self.rng.uniform(0.16, 0.26)
        x, y = self.width * self.rng.uniform(0.3, 0.7), self.horizon + size * self.rng.uniform(0.3, 0.6)
        deck = [
            (x - size, y),
            (x + size, y),
            (x + size * 0.6, y + size * 0.4),
            (x - size * 0.6, y + size * 0.4),
        ]
        self._polygon(deck, self.palette.wood)
        sail = [(x, y - size * 1.6), (x, y - size * 0.1), (x + size * 0.85, y - size * 0.1)]
        self._polygon(sail, self.palette.sail)

    def _polygon(self, corners: list[Point], colour: Colour) -> None:
        self.pen.polygon(corners, fill=colour)

    def _ellipse(self, centre: Point, half_width: float, half_height: float, colour: Colour) -> None:
        (x, y) = centre
        self.pen.ellipse([x - half_width, y - half_height, x + half_width, y + half_height], fill=colour)
