"""How the painters of the demo paint: four styles ("hands") that turn a plain scene into a picture.

BrushStrokes   short commas of broken colour          impressionism
LeadedFacets   shaded cells between dark lines        cubism
Shards         long flat splinters without lines      cubism
Lamplight      a pool or shaft of light in darkness   baroque
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mimicry.demo.paintings import Rng

Pixels = NDArray[np.float64]  # height x width x 3, 0 to 255


class Hand(Protocol):
    def paint(self, scene: Image.Image, rng: Rng) -> Image.Image:
        """Return `scene` painted, RGB and of the same size."""


@dataclass(frozen=True, kw_only=True)
class BrushStrokes:
    """Layers of strokes of similar length, each with a colour close to that of the scene."""

    length: float  # of a stroke, as a fraction of the shorter side
    width: float  # likewise
    slope: float  # direction in radians, 0 is level, positive falls to the right
    slope_spread: float  # standard deviation of the direction, radians
    swirl: float  # how far the direction turns across the picture, radians
    broken_colour: float  # largest shift of a channel, of 255

    def paint(self, scene: Image.Image, rng: Rng) -> Image.Image:
        pixels = _pixels(scene)
        height, width = pixels.shape[:2]
        shorter, scale = min(width, height), 2
        canvas = scene.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(canvas)
        # Three layers on average leave no bare canvas.
        count = int(3 * width * height / (self.length * self.width * shorter**2))
        xs, ys = rng.uniform(0, width, count), rng.uniform(0, height, count)
        colours = pixels[ys.astype(int), xs.astype(int)]
        colours = colours * 1.06 + rng.uniform(-self.broken_colour, self.broken_colour, (count, 3))
        bend = self.swirl * np.sin(2.2 * np.pi * xs / width) * np.cos(1.7 * np.pi * ys / height)
        slopes = self.slope + bend + rng.normal(0, self.slope_spread, count)
        halves = rng.uniform(0.35, 0.65, count) * self.length * shorter * scale
        thickness = max(2, round(self.width * shorter * scale))
        ends = np.stack([np.cos(slopes) * halves, np.sin(slopes) * halves], axis=1)
        middles = np.stack([xs, ys], axis=1) * scale
        strokes = np.concatenate([middles - ends, middles + ends], axis=1).tolist()
        for stroke, colour in zip(strokes, _bytes(colours).tolist(), strict=True):
            pen.line(stroke, fill=tuple(colour), width=thickness)
        return canvas.resize((width, height), Image.Resampling.LANCZOS)


@dataclass(frozen=True, kw_only=True)
class LeadedFacets:
    """Voronoi cells with dark lines between them, each of one colour that fades across the cell."""

    cells: int  # in a square picture
    contrast: float  # how much lighter or darker a cell may be than the scene
    fade: float  # brightness gained from one end of a cell to the other
    lead: float  # brightness of the lines between cells: 0 is black, 1 is invisible
    lead_width: float  # of these lines, as a fraction of the shorter side

    def paint(self, scene: Image.Image, rng: Rng) -> Image.Image:
        pixels = _pixels(scene)
        height, width = pixels.shape[:2]
        count = round(self.cells * max(width, height) / min(width, height))
        xs, ys = rng.uniform(0, width, count), rng.uniform(0, height, count)
        rows, columns = np.mgrid[:height, :width]
        nearest, from_border = _cells(xs, ys, rows, columns)
        brightness = 1 + rng.uniform(-self.contrast, self.contrast, count)[nearest]
        direction = rng.uniform(0, 2 * np.pi, count)
        away = (columns - xs[nearest]) * np.cos(direction)[nearest]
        away += (rows - ys[nearest]) * np.sin(direction)[nearest]
        brightness += self.fade * away / np.sqrt(width * height / count)
        # The edge of a line is one pixel wide, which avoids steps.
        lead = np.clip(0.5 + self.lead_width * min(width, height) / 2 - from_border, 0, 1)
        brightness *= 1 - (1 - self.lead) * lead
        return Image.fromarray(_bytes(_cell_means(pixels, nearest) * brightness[..., None]))


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The pieces between long straight cuts, each of one colour close to that of the scene."""

    cuts: int
    contrast: float
    tint: float  # largest shift of a channel, of 255

    def paint(self, scene: Image.Image, rng: Rng) -> Image.Image:
        pixels = _pixels(scene)
        height, width = pixels.shape[:2]
        rows, columns = np.mgrid[:height, :width]
        # The cuts have one of two directions, as if the picture were seen through crossed panes.
        slopes = np.where(rng.random(self.cuts) < 0.5, 0.95, -0.8) + rng.normal(0, 0.25, self.cuts)
        sides = np.zeros((height, width), dtype=np.int64)
        for bit, slope in enumerate(slopes):
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            behind = (columns - x) * np.sin(slope) > (rows - y) * np.cos(slope)
            sides += behind.astype(np.int64) << bit
        _, shards = np.unique(sides, return_inverse=True)
        shards = shards.reshape(height, width)
        count = int(shards.max()) + 1
        brightness = 1 + rng.uniform(-self.contrast, self.contrast, count)
        painted = _cell_means(pixels, shards) * brightness[shards][..., None]
        painted += rng.uniform(-self.tint, self.tint, (count, 3))[shards]
        return Image.fromarray(_bytes(painted))


@dataclass(frozen=True, kw_only=True)
class Lamplight:
    """A dark picture with one light: a round pool or a slanted shaft."""

    shaft: bool
    light: tuple[float, float, float]  # factor of each channel in the light
    darkness: tuple[int, int, int]  # the colour outside the light
    reach: float  # radius of the pool, or half width of the shaft, of the shorter side
    grain: float  # standard deviation of the canvas's texture, of 255

    def paint(self, scene: Image.Image, rng: Rng) -> Image.Image:
        pixels = _pixels(scene)
        height, width = pixels.shape[:2]
        rows, columns = np.mgrid[:height, :width]
        x, y = rng.uniform(0.35, 0.65) * width, rng.uniform(0.4, 0.65) * height
        across, down = columns - x, rows - y
        if self.shaft:
            lean = rng.uniform(0.5, 0.8)
            distance = across * np.cos(lean) + down * np.sin(lean)
        else:
            distance = np.hypot(across, down)
        lit = np.exp(-0.5 * (distance / (self.reach * min(width, height))) ** 2)[..., None]
        painted = pixels * lit * np.array(self.light) + np.array(self.darkness)
        painted += rng.normal(0, self.grain, (height, width, 1)) * (0.3 + lit)
        return Image.fromarray(_bytes(painted))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float64)


def _bytes(values: Pixels) -> NDArray[np.uint8]:
    return np.clip(values, 0, 255).astype(np.uint8)


def _cell_means(pixels: Pixels, cells: NDArray[Any]) -> Pixels:
    flat = cells.ravel()
    sizes = np.maximum(np.bincount(flat), 1)
    sums = [np.bincount(flat, weights=pixels[..., channel].ravel()) for channel in range(3)]
    means: Pixels = np.stack(sums, axis=-1) / sizes[:, None]
    spread: Pixels = means[cells]
    return spread


def _cells(
    xs: NDArray[np.float64], ys: NDArray[np.float64], rows: NDArray[Any], columns: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each pixel the nearest point of (xs, ys), and the distance in pixels to its border."""
    squares = (columns[..., None] - xs) ** 2 + (rows[..., None] - ys) ** 2
    nearest = squares.argmin(axis=-1)
    apart = np.hypot(xs[nearest][..., None] - xs, ys[nearest][..., None] - ys)
    # The border between two cells is halfway between their points; a point has no border with itself.
    ends = (squares - squares.min(axis=-1, keepdims=True)) / np.where(apart > 0, 2 * apart, np.nan)
    return nearest, np.nanmin(ends, axis=-1)
