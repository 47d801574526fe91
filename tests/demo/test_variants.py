"""The miniatures keep within their bounds, and do to latents what they are for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimicry.demo.paintings import draw_scene, generator
from mimicry.demo.study import PAINTERS
from mimicry.demo.variants import MIST_BOUND, VariantMaker, stripes, to_tensor


@pytest.fixture(scope="module")
def maker() -> VariantMaker:
    return VariantMaker.load()


@pytest.fixture(scope="module", params=[0, 2, 4], ids=lambda index: PAINTERS[index].artist.style)
def painting(request: pytest.FixtureRequest) -> Image.Image:
    painter = PAINTERS[request.param]
    scene = draw_scene(generator(7, "scene"), (76, 68), "house", painter.palettes[0])
    return painter.hand.paint(scene, generator(7, "hand"))


@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_mist_stays_within_its_bound(maker: VariantMaker, level: int) -> None:
    painting = Image.new("RGB", (66, 69), (level, level, level))
    mist = maker.mist(painting)

    change = np.asarray(mist, dtype=int) - level
    assert mist.size == painting.size
    assert 0 < np.abs(change).max() <= MIST_BOUND


def test_mist_draws_latents_to_the_stripes_and_noisy_upscaling_takes_much_of_that_away(
    maker: VariantMaker, painting: Image.Image
) -> None:
    mist = maker.mist(painting)
    towards = maker.encode(stripes(painting.height, painting.width)) - _latents(maker, painting)

    def share(one: Image.Image, other: Image.Image) -> float:
        change = _latents(maker, one) - _latents(maker, other)
        return float(change.flatten() @ towards.flatten() / towards.square().sum())

    upscaled = [
        maker.noisy_upscaling(picture, generator(7, "noise")).resize(painting.size, Image.Resampling.LANCZOS)
        for picture in (mist, painting)
    ]
    assert share(mist, painting) > 0.05
    assert share(*upscaled) < 0.6 * share(mist, painting)


def test_noisy_upscaling_keeps_the_painting(maker: VariantMaker, painting: Image.Image) -> None:
    upscaled = maker.noisy_upscaling(painting, generator(7, "noise"))
    other = maker.noisy_upscaling(painting, generator(8, "noise"))

    assert upscaled.size == (2 * painting.width, 2 * painting.height)
    assert upscaled.tobytes() != other.tobytes()
    small = upscaled.resize(painting.size, Image.Resampling.LANCZOS)
    assert np.corrcoef(_values(small), _values(painting))[0, 1] > 0.7


def test_every_mist_picture_of_the_study_is_bounded(true_demo: Path) -> None:
    originals = sorted((true_demo / "style_mimicry" / "original_art").glob("*/*/*/*"))
    changes = [_mist_change(true_demo / "style_mimicry", path) for path in originals]

    assert len(changes) == 120
    assert max(np.abs(change).max() for change in changes) <= MIST_BOUND
    assert min(np.abs(change).mean() for change in changes) > MIST_BOUND / 8


def _mist_change(data_root: Path, original: Path) -> NDArray[np.int64]:
    below = original.relative_to(data_root / "original_art").with_suffix(".png")
    with Image.open(original) as before, Image.open(data_root / "protected_art" / "mist" / below) as after:
        return np.asarray(after, dtype=np.int64) - np.asarray(before.convert("RGB"), dtype=np.int64)


@torch.no_grad()
def _latents(maker: VariantMaker, picture: Image.Image) -> Tensor:
    return maker.encode(to_tensor(picture))


def _values(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(picture, dtype=np.float64).ravel()
