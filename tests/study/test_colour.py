"""Embedded colour profiles: named, told from sRGB, and applied when that is asked for."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from mimicry.study.images import Reading, check_image, decode, profile_of, read_rgb


def matrix_profile(name: str, gamma: float, swapped: bool = False) -> bytes:
    """Return an RGB profile of our own making: sRGB with another gamma, or with red and blue swapped."""
    from struct import pack

    def fixed(value: float) -> bytes:
        return pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    text = name.encode()
    description = b"desc\0\0\0\0" + pack(">I", len(text) + 1) + text + b"\0" * (1 + 4 + 4 + 2 + 1 + 67)
    curve = b"curv\0\0\0\0" + pack(">IH", 1, round(gamma * 256))
    # The primaries of sRGB, adapted to D50.
    primaries = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
    if swapped:
        primaries.reverse()
    tags = {
        b"desc": description,
        b"cprt": b"text\0\0\0\0free\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*primaries[0]),
        b"gXYZ": xyz(*primaries[1]),
        b"bXYZ": xyz(*primaries[2]),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += pack(">4sII", tag, offset + len(body), len(content))
        body += content
    size = offset + len(body)
    header = pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    header += fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return header.ljust(128, b"\0") + pack(">I", len(tags)) + table + body


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = matrix_profile("Swapped Lab Profile", 2.2, swapped=True)
STEEP = matrix_profile("Steep Profile", 1.0)


def pixel(image: Image.Image) -> tuple[int, ...]:
    colour = image.getpixel((0, 0))
    assert isinstance(colour, tuple)
    return colour


def write(path: Path, profile: bytes | None, mode: str = "RGB", colour: Any = (200, 100, 50)) -> Path:
    Image.new(mode, (16, 12), colour).save(path, icc_profile=profile)
    return path


class TestNames:
    def test_that_of_srgb(self) -> None:
        profile = profile_of(SRGB, "RGB")
        assert profile.is_srgb
        assert "sRGB" in profile.name

    @pytest.mark.parametrize(
        ("content", "name"), [(SWAPPED, "Swapped Lab Profile"), (STEEP, "Steep Profile")]
    )
    def test_another(self, content: bytes, name: str) -> None:
        profile = profile_of(content, "RGB")
        assert (profile.name, profile.is_srgb, profile.fault) == (name, False, "")

    def test_one_that_is_none(self) -> None:
        profile = profile_of(b"no profile at all", "RGB")
        assert not profile.is_srgb
        assert profile.fault

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_one_for_another_kind_of_image(self, mode: str) -> None:
        profile = profile_of(STEEP, mode)
        assert (profile.fault != "") == (mode == "CMYK")

    def test_it_is_recorded_of_an_image(self, tmp_path: Path) -> None:
        _, facts = check_image(write(tmp_path / "a.png", STEEP))
        assert (facts.profile, facts.other_colours) == ("Steep Profile", True)
        _, facts = check_image(write(tmp_path / "b.jpg", SRGB))
        assert not facts.other_colours
        _, facts = check_image(write(tmp_path / "c.tif", None))
        assert (facts.profile, facts.other_colours) == (None, False)


class TestConversion:
    def test_nothing_changes_unless_it_is_asked_for(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.png", SWAPPED)
        assert read_rgb(path).getpixel((0, 0)) == (200, 100, 50)

    def test_red_and_blue_swap_back(self, tmp_path: Path) -> None:
        red, green, blue = pixel(read_rgb(write(tmp_path / "a.png", SWAPPED), Reading(convert_profiles=True)))
        assert red < 90
        assert abs(green - 100) < 8
        assert blue > 180

    @pytest.mark.parametrize("profile", [SRGB, None])
    def test_srgb_keeps_every_bit(self, profile: bytes | None, tmp_path: Path) -> None:
        path = write(tmp_path / "a.png", profile)
        assert read_rgb(path, Reading(convert_profiles=True)).tobytes() == read_rgb(path).tobytes()

    def test_transparency_stays(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.png", SWAPPED, "RGBA", (200, 100, 50, 0))
        assert read_rgb(path, Reading(convert_profiles=True)).getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize("mode", ["L", "P"])
    def test_grey_and_palettes(self, mode: str, tmp_path: Path) -> None:
        image = Image.new("RGB", (16, 12), (60, 60, 60)).convert(mode)
        image.save(tmp_path / "a.png", icc_profile=STEEP)
        # With a gamma of 1 the same number is a lighter grey.
        assert min(pixel(read_rgb(tmp_path / "a.png", Reading(convert_profiles=True)))) > 110

    def test_a_profile_that_cannot_be_used_is_refused_with_its_name(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.png", b"broken" * 40)
        assert decode(path)[1].other_colours
        with pytest.raises(OSError, match=r"a\.png cannot be read as an image: its colour profile 'unknown'"):
            decode(path, Reading(convert_profiles=True))

    def test_orientation_and_profile_together(self, tmp_path: Path) -> None:
        exif, file = Image.Exif(), BytesIO()
        exif[0x0112] = 6
        Image.new("RGB", (16, 12), (200, 100, 50)).save(file, "PNG", exif=exif, icc_profile=SWAPPED)
        (tmp_path / "a.png").write_bytes(file.getvalue())
        picture, facts = decode(tmp_path / "a.png", Reading(convert_profiles=True))
        assert picture.size == (facts.width, facts.height) == (12, 16)
        assert pixel(picture)[2] > 180
