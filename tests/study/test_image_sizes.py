"""Sizes from the first bytes of files are those that Pillow decodes."""

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, features

from mimicry.study.image_sizes import stated_sizes
from mimicry.study.images import IMAGE_SUFFIXES, read_rgb


def size_of(path: Path) -> tuple[int, int] | None:
    return stated_sizes(path.parent, [path.name]).get(path.name)


@pytest.mark.parametrize("suffix", [suffix for suffix in IMAGE_SUFFIXES if suffix != ".avif"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_every_format_upright_or_on_its_side(suffix: str, orientation: int | None, tmp_path: Path) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    # Long data before the frame, as cameras and scanners write it.
    exif[0x010E] = "x" * 9000
    options: dict[str, Any] = {} if suffix == ".bmp" else {"exif": exif}
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (40, 30), "red").save(path, **options)

    assert size_of(path) == read_rgb(path).size


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "x.avif")
    assert size_of(tmp_path / "x.avif") == (40, 30)


@pytest.mark.parametrize(
    "settings", [{"progressive": True}, {"icc_profile": b"p" * 70_000}, {"comment": "c" * 200}]
)
def test_other_jpegs(settings: dict[str, Any], tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "x.jpg", **settings)
    assert size_of(tmp_path / "x.jpg") == (300, 200)


def test_a_png_that_is_turned_by_its_xmp(tmp_path: Path) -> None:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png", pnginfo=info)
    assert size_of(tmp_path / "x.png") == read_rgb(tmp_path / "x.png").size


def test_what_tells_no_size(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "link.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    names = ["folder.png", "empty.png", "text.png", "link.png", "pipe.png", "missing.png"]
    assert stated_sizes(tmp_path, names) == {}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_damage_is_never_an_error(suffix: str, tmp_path: Path) -> None:
    random, path = Random(suffix), tmp_path / f"x{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, Any] = {} if suffix == ".bmp" else {"exif": exif}
    Image.new("RGB", (24, 20)).save(path, **options)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole[: random.randrange(len(whole)) + 1])
        for _ in range(random.randint(0, 4)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged)
        found = size_of(path)
        assert found is None or len(found) == 2
