"""The hands of the painters: each keeps the picture's size, and each is known by its look."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mimicry.demo.hands import LeadedFacets, Shards
from mimicry.demo.paintings import draw_scene, generator
from mimicry.demo.study import PAINTERS, Painter


@pytest.mark.parametrize("painter", PAINTERS, ids=str)
@pytest.mark.parametrize("size", [(96, 144), (131, 97)])
def test_a_hand_keeps_the_size_and_changes_the_scene(painter: Painter, size: tuple[int, int]) -> None:
    scene = draw_scene(generator(7, "scene"), size, "house", painter.palettes[0])
    painted = painter.hand.paint(scene, generator(7, "hand"))

    assert painted.size == size
    assert painted.mode == "RGB"
    change = np.abs(np.asarray(painted, dtype=float) - np.asarray(scene, dtype=float))
    assert change.mean() > 4


def test_shards_are_flat() -> None:
    scene = draw_scene(generator(7, "scene"), (128, 96), "tree", PAINTERS[3].palettes[0])
    painted = Shards(cuts=12, contrast=0.2, tint=10).paint(scene, generator(7, "hand"))

    colours = painted.getcolors(maxcolors=scene.width * scene.height)
    assert colours is not None
    assert 12 < len(colours) <= 1 + 12 * 13 // 2  # so many cells are made by twelve straight cuts at most


@pytest.mark.parametrize("side", [64, 128])
def test_leading_is_as_wide_as_it_is_told(side: int) -> None:
    grey = Image.new("RGB", (side, side), (200, 200, 200))
    facets = LeadedFacets(cells=2, contrast=0.0, fade=0.0, lead=0.1, lead_width=0.05)
    painted = np.asarray(facets.paint(grey, generator(7, "two")), dtype=float)[..., 0]

    # One straight line from edge to edge; its area over its length is its width.
    dark = (200 - painted) / 180
    assert dark.min() == 0
    rows, columns = np.nonzero(dark > 0.9)
    length = np.hypot(np.ptp(rows), np.ptp(columns))
    assert dark.sum() / length == pytest.approx(0.05 * side, rel=0.15)


def test_styles_and_artists_are_told_apart_by_simple_measures(demo_dir: Path) -> None:
    root = demo_dir / "style_mimicry" / "original_art" / "historical"
    paintings = sorted(root.glob("*/*/*"))
    looks = np.array([_look(path) for path in paintings])
    looks = (looks - looks.mean(axis=0)) / looks.std(axis=0)
    distance = ((looks[:, None] - looks) ** 2).sum(axis=-1)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)

    artists = np.array([path.parent.name for path in paintings])
    styles = np.array([path.parent.parent.name for path in paintings])
    # By chance one in six, and one in three, would match.
    assert (artists[nearest] == artists).mean() > 0.95
    assert (styles[nearest] == styles).mean() > 0.97


def _look(path: Path) -> list[float]:
    """Return brightness, shares of flat and of steep pixels, saturation, warmth and darkest level."""
    with Image.open(path) as opened:
        pixels: NDArray[np.float64] = np.asarray(opened.convert("RGB"), dtype=np.float64)
    grey = pixels.mean(axis=-1)
    slope = np.abs(np.diff(grey, axis=1))
    return [
        float(grey.mean()),
        float((slope < 2).mean()),
        float((slope > 20).mean()),
        float((pixels.max(axis=-1) - pixels.min(axis=-1)).mean()),
        float((pixels[..., 0] - pixels[..., 2]).mean()),
        float(np.percentile(grey, 5)),
    ]
