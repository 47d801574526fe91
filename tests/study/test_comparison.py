"""How far an image is from its original, and whether it is the same picture."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mimicry.study.comparison import AS_IT_IS, CROPPED, SCALED, SQUEEZED, Comparison, Pair, judged

SIZE = (160, 120)


def painting(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw a picture of blots, lines and grain, another one for each seed."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", SIZE, tuple(random.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, w, h = (random.random(4) * [140, 100, 60, 50]).tolist()
        draw.ellipse((x, y, x + w + 4, y + h + 4), tuple(random.integers(0, 255, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(1)).resize(size, Image.Resampling.LANCZOS)


def perturbed(image: Image.Image, strength: int, seed: int = 5) -> Image.Image:
    pixels = np.asarray(image, np.int16)
    change = np.random.default_rng(seed).choice([-strength, strength], pixels.shape)
    return Image.fromarray((pixels + change).clip(0, 255).astype(np.uint8))


PAINTINGS = {f"{seed:02}": painting(seed) for seed in range(8)}


def compare(changed: dict[str, Image.Image]) -> dict[str, Comparison]:
    """Compare images with the paintings of the same stem."""
    found = judged([Pair.measure(stem, image, PAINTINGS[stem]) for stem, image in changed.items()])
    return dict(zip(changed, found, strict=True))


class TestDose:
    def test_the_formulas(self) -> None:
        one, other = Image.new("RGB", (20, 10), (100, 100, 100)), Image.new("RGB", (20, 10), (100, 100, 100))
        other.putpixel((3, 4), (110, 100, 80))
        pair = Pair.measure("x", one, other)
        assert pair.linf == 20
        assert pair.psnr == pytest.approx(10 * math.log10(255**2 / ((10**2 + 20**2) / (20 * 10 * 3))))
        assert pair.fit == AS_IT_IS

    @pytest.mark.parametrize("strength", [1, 8, 16])
    def test_noise_of_a_known_strength(self, strength: int) -> None:
        gray = Image.new("RGB", (64, 64), (128, 128, 128))
        pair = Pair.measure("x", perturbed(gray, strength), gray)
        assert pair.linf == strength
        assert pair.psnr == pytest.approx(20 * math.log10(255 / strength))

    def test_nothing_changed(self) -> None:
        (found,) = compare({"01": PAINTINGS["01"].copy()}).values()
        assert (found.psnr, found.linf, found.unlike) == (None, 0, "")

    def test_it_is_measured_at_the_size_of_the_image(self) -> None:
        original = painting(1, (640, 480))
        small = original.resize((160, 120), Image.Resampling.LANCZOS)
        scaled = Pair.measure("x", small, original)
        assert scaled.fit == SCALED
        assert scaled.psnr is None or scaled.psnr > 35
        assert Pair.measure("x", original.resize((480, 480)), original).fit == SQUEEZED
        assert Pair.measure("x", original.crop((80, 0, 560, 480)), original).fit == CROPPED


class TestTheSamePicture:
    def test_protections_and_countermeasures_pass(self) -> None:
        for change in (
            lambda image: perturbed(image, 16),
            lambda image: perturbed(image.resize((320, 240), Image.Resampling.LANCZOS), 8),
            lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
            lambda image: image.resize((128, 128), Image.Resampling.LANCZOS),
            lambda image: image.crop((20, 0, 140, 120)),
            lambda image: Image.blend(image, Image.new("RGB", image.size, "gray"), 0.3),
        ):
            found = compare({stem: change(image) for stem, image in PAINTINGS.items()})
            assert [each.unlike for each in found.values()] == [""] * len(PAINTINGS)

    @pytest.mark.parametrize(
        "turn",
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.ROTATE_90,
            Image.Transpose.ROTATE_180,
            Image.Transpose.ROTATE_270,
        ],
    )
    def test_mirrored_or_turned(self, turn: Image.Transpose) -> None:
        found = compare({stem: perturbed(image.transpose(turn), 8) for stem, image in PAINTINGS.items()})
        assert all("mirrored or turned" in each.unlike for each in found.values())

    def test_two_that_were_swapped_are_named(self) -> None:
        found = compare(PAINTINGS | {"01": PAINTINGS["02"], "02": PAINTINGS["01"]})
        assert {stem: each.unlike for stem, each in found.items() if each.unlike} == {
            "01": "looks like '02'",
            "02": "looks like '01'",
        }

    def test_another_picture(self) -> None:
        found = compare(PAINTINGS | {"03": painting(99)})
        assert [stem for stem, each in found.items() if each.unlike] == ["03"]

    @pytest.mark.parametrize("box", [(0, 0, 120, 90), (40, 30, 160, 120), (0, 0, 80, 120)])
    def test_another_part_of_it(self, box: tuple[int, int, int, int]) -> None:
        found = compare({stem: image.crop(box) for stem, image in PAINTINGS.items()})
        assert all(each.unlike for each in found.values())

    def test_the_negative(self) -> None:
        found = compare(PAINTINGS | {"04": Image.eval(PAINTINGS["04"], lambda value: 255 - value)})
        assert found["04"].unlike

    def test_pictures_without_a_composition(self) -> None:
        """A canvas in one colour looks like another of that colour only, whatever the noise says."""
        plain = Image.new("RGB", SIZE, (200, 30, 30))
        same = Pair.measure("a", perturbed(plain, 8), plain)
        other = Pair.measure("b", Image.new("RGB", SIZE, (20, 30, 200)), plain)
        first, second = judged([same, other])
        assert first.unlike == ""
        assert second.unlike

    def test_a_symmetric_picture_is_not_called_mirrored(self) -> None:
        half = PAINTINGS["05"].crop((0, 0, 80, 120))
        whole = Image.new("RGB", SIZE)
        whole.paste(half, (0, 0))
        whole.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (80, 0))
        (found,) = judged([Pair.measure("x", perturbed(whole, 16), whole)])
        assert found.unlike == ""
