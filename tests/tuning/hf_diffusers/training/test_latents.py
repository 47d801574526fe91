"""Images as latents: how they are cut, in which precision, and that a cache changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw

from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.latents import LatentSource, apply_crop, to_pixels
from mimicry.tuning.hf_diffusers.training.rng import Crop, Sample, SamplePlan
from mimicry.tuning.options.config import TuningConfig
from tests.study.test_colour import STEEP
from tests.tuning.hf_diffusers.studio import Studio

CENTRE = Crop(across=0.5, down=0.5, flipped=False)
CPU = torch.device("cpu")
RESOLUTION = 32

MakeSource = Callable[..., LatentSource]


def ramp(width: int, height: int) -> Image.Image:
    """Return an image that tells where it was cut: red grows from left to right, green downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.arange(width)[None, :]
    pixels[:, :, 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


def smooth(width: int, height: int) -> Image.Image:
    """Return a picture without fine detail, drawn at its own size."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    waves = [np.sin(5 * x + 3 * y), np.cos(7 * x * y), np.sin(4 * y - 6 * x * x)]
    return Image.fromarray((127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


def plan(count: int, **how: Any) -> SamplePlan:
    stems = tuple(f"image {number}" for number in range(count))
    crops: dict[str, Any] = {"center_crop": True, "random_flip": False}
    return SamplePlan(seed=42, stems=stems, **(crops | how))


@pytest.fixture
def make_source(studio: Studio) -> MakeSource:
    """Return a function that makes a source of latents of some images, or of the studio's."""

    def make(images: list[Path] | None = None, **values: Any) -> LatentSource:
        chosen: dict[str, Any] = {"resolution": RESOLUTION, "mixed_precision": "no", **values}
        config = TuningConfig(**chosen)
        paths = sorted(studio.images.iterdir()) if images is None else images
        return LatentSource.load(BaseModel(folder=studio.base_model), paths, config, CPU)

    return make


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The batches of pixels that any VAE is given to encode."""
    batches: list[torch.Tensor] = []
    encode = AutoencoderKL.encode

    def watched(vae: Any, pixels: torch.Tensor, *words: Any, **more: Any) -> Any:
        assert {value.dtype for value in vae.parameters()} == {torch.float32}
        batches.append(pixels)
        return encode(vae, pixels, *words, **more)

    monkeypatch.setattr(AutoencoderKL, "encode", watched)
    return batches


class TestCut:
    @pytest.mark.parametrize(
        ("size", "crop", "left", "upper"),
        [
            ((200, 100), CENTRE, 50, 0),
            ((100, 200), CENTRE, 0, 50),
            ((100, 100), CENTRE, 0, 0),
            ((200, 100), Crop(across=0.0, down=0.0), 0, 0),
            ((200, 100), Crop(across=1.0, down=1.0), 100, 0),
            ((100, 200), Crop(across=0.3, down=0.25), 0, 25),
            ((101, 64), CENTRE, 18.5, 0),
        ],
    )
    def test_takes_the_largest_square_at_the_asked_place(
        self, size: tuple[int, int], crop: Crop, left: float, upper: float
    ) -> None:
        side = min(size)
        resolution = 20
        pixels = np.array(apply_crop(ramp(*size), crop, resolution), dtype=float)
        assert pixels.shape == (resolution, resolution, 3)
        # The filter is one-sided at the borders, so that the outermost pixels are a little off.
        inner = np.arange(2, resolution - 2)
        centres = (inner + 0.5) * side / resolution - 0.5
        np.testing.assert_allclose(pixels[5, inner, 0], left + centres, atol=1.0)
        np.testing.assert_allclose(pixels[inner, 5, 1], upper + centres, atol=1.0)

    @pytest.mark.parametrize("resolution", [16, 64, 256])
    def test_scales_down_and_up(self, resolution: int) -> None:
        assert apply_crop(ramp(120, 90), CENTRE, resolution).size == (resolution, resolution)

    def test_a_flipped_view_is_the_mirror_image(self) -> None:
        image = smooth(90, 64)
        straight = np.array(apply_crop(image, Crop(across=0.2, down=0.5), 32))
        flipped = np.array(apply_crop(image, Crop(across=0.2, down=0.5, flipped=True), 32))
        assert (flipped == straight[:, ::-1]).all()
        assert (flipped != straight).any()

    @pytest.mark.parametrize("crop", [CENTRE, Crop(across=0.13, down=0.7), Crop(across=1.0, down=0.0)])
    @pytest.mark.parametrize("size", [(160, 120), (120, 160)])
    def test_a_larger_copy_is_cut_alike(self, size: tuple[int, int], crop: Crop) -> None:
        """A countermeasure may have scaled the image: the same part of the picture must be seen."""
        larger = smooth(size[0] * 5 // 4, size[1] * 5 // 4)
        ours, theirs = (
            np.array(apply_crop(image, crop, 48), dtype=float) for image in (smooth(*size), larger)
        )
        # A shift of a single pixel of the result makes 4 in the mean.
        assert np.abs(ours - theirs).mean() < 0.7

    def test_pixels_are_scaled_to_minus_one_and_one(self) -> None:
        image = Image.new("RGB", (3, 2), (0, 255, 51))
        pixels = to_pixels(image)
        assert pixels.dtype == torch.float32
        assert pixels.shape == (1, 3, 2, 3)
        torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


class TestLatentSource:
    def test_latents_are_the_formula(self, studio: Studio, make_source: MakeSource) -> None:
        sample = plan(4).sample(2)
        path = sorted(studio.images.iterdir())[sample.image]
        vae = AutoencoderKL.from_pretrained(studio.base_model / "vae").eval()
        with Image.open(path) as image:
            pixels = to_pixels(apply_crop(image.convert("RGB"), CENTRE, RESOLUTION))
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        noise = torch.from_numpy(rng.normal(42, "vae", 2, sample.stem, tuple(posterior.mean.shape[1:])))
        drawn = posterior.mean[0] + posterior.std[0] * noise
        expected = (drawn - vae.config.shift_factor) * vae.config.scaling_factor

        latents = make_source().latents(sample)

        assert latents.dtype == torch.float32
        torch.testing.assert_close(latents, expected)

    @pytest.mark.parametrize("cached", [False, True])
    def test_the_vae_runs_in_fp32_whatever_the_training_precision(
        self, cached: bool, make_source: MakeSource, encoded: list[torch.Tensor]
    ) -> None:
        samples = [plan(4).sample(index) for index in range(4)]
        coarse, fine = make_source(mixed_precision="bf16"), make_source(mixed_precision="no")
        if cached:
            coarse.cache(samples)
        for sample in samples:
            assert torch.equal(coarse.latents(sample), fine.latents(sample))
        assert {pixels.dtype for pixels in encoded} == {torch.float32}

    @pytest.mark.parametrize("how", [{}, {"random_flip": True}, {"center_crop": False, "random_flip": True}])
    def test_cached_latents_are_those_of_no_cache(
        self, how: dict[str, bool], make_source: MakeSource
    ) -> None:
        samples = [plan(4, **how).sample(index) for index in range(12)]
        cached, uncached = make_source(), make_source()
        cached.cache(samples)
        # Asked for in another order, since a lookup by position would pass otherwise.
        for sample in reversed(samples):
            assert torch.equal(cached.latents(sample), uncached.latents(sample))

    def test_each_epoch_draws_the_image_anew_from_its_posterior(self, make_source: MakeSource) -> None:
        source = make_source()
        first, second = (source.latents(Sample(index, 1, "image 1", CENTRE)) for index in (1, 5))
        assert not torch.equal(first, second)
        assert torch.equal(first, source.latents(Sample(1, 1, "image 1", CENTRE)))

    @pytest.mark.parametrize(
        ("how", "encodings"),
        [({}, 4), ({"random_flip": True}, 8), ({"center_crop": False}, 40)],
        ids=["one crop", "mirrored too", "random crops"],
    )
    def test_each_distinct_view_is_encoded_once(
        self, how: dict[str, bool], encodings: int, make_source: MakeSource, encoded: list[torch.Tensor]
    ) -> None:
        samples = [plan(4, **how).sample(index) for index in range(40)]
        source = make_source()
        source.cache(samples)
        assert len(encoded) == encodings
        for sample in samples:
            source.latents(sample)
        assert len(encoded) == encodings

    def test_a_view_that_was_not_cached_is_no_silent_other_one(self, make_source: MakeSource) -> None:
        source = make_source()
        source.cache([plan(4).sample(0)])
        with pytest.raises(KeyError, match="not among the samples"):
            source.latents(Sample(1, plan(4).sample(0).image, "image 0", Crop(across=0.1)))

    def test_a_photo_is_turned_as_its_exif_says(self, tmp_path: Path, make_source: MakeSource) -> None:
        upright = smooth(48, 80)
        ImageDraw.Draw(upright).rectangle((0, 0, 20, 20), fill="red")
        upright.save(tmp_path / "upright.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
        source = make_source([tmp_path / "upright.png", tmp_path / "turned.png"])
        upright_latents, turned_latents = (
            source.latents(Sample(0, image, "same stem", CENTRE)) for image in (0, 1)
        )
        assert torch.equal(upright_latents, turned_latents)

    def test_colour_profiles_count_where_that_is_asked_for(
        self, tmp_path: Path, make_source: MakeSource
    ) -> None:
        smooth(40, 40).save(tmp_path / "plain.png")
        smooth(40, 40).save(tmp_path / "other.png", icc_profile=STEEP)
        paths = [tmp_path / "plain.png", tmp_path / "other.png"]
        for converts in (False, True):
            source = make_source(paths, convert_profiles=converts)
            plain, other = (source.latents(Sample(0, image, "same stem", CENTRE)) for image in (0, 1))
            assert torch.equal(plain, other) != converts

    def test_sizes_are_evened_out_where_that_is_asked_for(
        self, tmp_path: Path, make_source: MakeSource
    ) -> None:
        picture = smooth(120, 90)
        picture.save(tmp_path / "large.png")
        picture.resize((60, 45), Image.Resampling.LANCZOS).save(tmp_path / "small.png")
        paths = [tmp_path / "large.png", tmp_path / "small.png"]
        found = {}
        for side in (None, 45, 400):
            source = make_source(paths, source_resolution=side)
            found[side] = [source.latents(Sample(0, image, "same stem", CENTRE)) for image in (0, 1)]
        assert torch.equal(*found[45])
        # None is enlarged, so a limit that is never reached changes no bit.
        assert not torch.equal(*found[None])
        for with_limit, without in zip(found[400], found[None], strict=True):
            assert torch.equal(with_limit, without)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
    def test_images_of_every_mode_are_read(self, mode: str, tmp_path: Path, make_source: MakeSource) -> None:
        smooth(40, 40).convert(mode).save(tmp_path / "image.tiff")
        latents = make_source([tmp_path / "image.tiff"]).latents(Sample(0, 0, "image", CENTRE))
        assert torch.isfinite(latents).all()
