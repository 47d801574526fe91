"""The imitations keep within their bounds, and do something."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimicry.demo.chance import generator
from mimicry.demo.variants import MIST_BOUND, imitate_mist, imitate_noisy_upscaling

FLAT = Image.new("RGB", (121, 96), (128, 90, 60))


@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_mist_stays_within_its_bound(level: int) -> None:
    painting = Image.new("RGB", (120, 97), (level, level, level))
    mist = imitate_mist(painting, generator(7, "mist"))

    change = np.asarray(mist, dtype=int) - level
    assert mist.size == painting.size
    assert np.abs(change).max() <= MIST_BOUND
    assert np.abs(change).mean() > MIST_BOUND / 4


def test_mist_is_fine_grained() -> None:
    change = np.asarray(imitate_mist(FLAT, generator(7, "mist")), dtype=float)[..., 0] - 128
    spectrum = np.abs(np.fft.fft2(change)) ** 2
    frequency = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(121))

    # Waves of eight pixels and shorter bear nearly all of the power.
    assert spectrum[frequency > 1 / 8].sum() > 0.9 * spectrum.sum()


def test_noisy_upscaling_weakens_mist_and_enlarges() -> None:
    mist = imitate_mist(FLAT, generator(7, "mist"))
    upscaled = imitate_noisy_upscaling(mist, generator(7, "noise"))

    assert upscaled.size == (151, 120)
    assert 0 < np.asarray(upscaled)[..., 0].std() < 0.6 * np.asarray(mist)[..., 0].std()


def test_noisy_upscaling_adds_noise_of_its_own() -> None:
    first = imitate_noisy_upscaling(FLAT, generator(7, "noise"))
    second = imitate_noisy_upscaling(FLAT, generator(8, "noise"))

    assert first.tobytes() != second.tobytes()


def test_every_mist_picture_of_the_study_is_bounded(demo_dir: Path) -> None:
    originals = sorted((demo_dir / "style_mimicry" / "original_art").glob("*/*/*/*"))
    changes = [_mist_change(demo_dir / "style_mimicry", path) for path in originals]

    assert len(changes) == 120
    assert max(np.abs(change).max() for change in changes) <= MIST_BOUND
    assert min(np.abs(change).mean() for change in changes) > MIST_BOUND / 8


def _mist_change(data_root: Path, original: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    below = original.relative_to(data_root / "original_art").with_suffix(".png")
    with Image.open(original) as before, Image.open(data_root / "protected_art" / "mist" / below) as after:
        return np.asarray(after, dtype=np.int64) - np.asarray(before.convert("RGB"), dtype=np.int64)
