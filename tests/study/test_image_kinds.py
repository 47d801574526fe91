"""Every odd kind of image: those that are read, and as what, and those that are refused by name."""

import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin, features

from mimicry.study import images
from mimicry.study.image_checks import bad_images
from mimicry.study.images import ImageFolder, read_rgb

SIZE = (16, 12)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(mode: str = "RGB", colour: tuple[int, ...] = RED) -> Image.Image:
    image = Image.new("RGB", SIZE, colour)
    return image if mode == "RGB" else image.convert(mode)


def problem_of(path: Path) -> str:
    """Return what the check says of the one image in the folder of `path`."""
    (bad,) = bad_images([ImageFolder.read(path.parent)])
    assert bad.path == path
    return bad.problem.removeprefix(str(path))


def assert_good(path: Path, *colours: tuple[int, int, int]) -> None:
    """The check lets it through, and it is read as RGB of one of the `colours`, or nearly so."""
    assert bad_images([ImageFolder.read(path.parent)]) == []
    image = read_rgb(path)
    assert (image.mode, image.size) == ("RGB", SIZE)
    pixel = image.getpixel((3, 3))
    assert isinstance(pixel, tuple)
    assert any(max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 20 for colour in colours)


class TestRead:
    @pytest.mark.parametrize(
        ("mode", "name", "colour"),
        [
            ("CMYK", "x.jpg", RED),
            ("CMYK", "x.tif", RED),
            ("P", "x.png", RED),
            ("L", "x.jpg", (76, 76, 76)),
            ("1", "x.png", (0, 0, 0)),
            ("RGBA", "x.webp", RED),
            ("LA", "x.png", (76, 76, 76)),
            ("YCbCr", "x.jpg", RED),
        ],
    )
    def test_colour_modes(self, mode: str, name: str, colour: tuple[int, int, int], tmp_path: Path) -> None:
        picture(mode).save(tmp_path / name)
        # One bit is dithered.
        assert_good(tmp_path / name, colour, (255, 255, 255) if mode == "1" else colour)

    def test_sixteen_bits_in_colour(self, tmp_path: Path) -> None:
        """Pillow writes none, so this PNG is put together here."""

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        row = b"\0" + struct.pack(">3H", 65535, 0, 0) * SIZE[0]
        header = struct.pack(">2I5B", *SIZE, 16, 2, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", zlib.compress(row * SIZE[1])), (b"IEND", b"")]
        content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
        (tmp_path / "x.png").write_bytes(content)
        assert_good(tmp_path / "x.png", RED)

    @pytest.mark.parametrize(("alpha", "colour"), [(0, (255, 255, 255)), (128, (255, 127, 127)), (255, RED)])
    def test_what_is_transparent_is_white(
        self, alpha: int, colour: tuple[int, int, int], tmp_path: Path
    ) -> None:
        image = picture("RGBA")
        image.putalpha(alpha)
        image.save(tmp_path / "x.png")
        assert_good(tmp_path / "x.png", colour)

    def test_a_transparent_colour_of_a_palette(self, tmp_path: Path) -> None:
        image = picture("P")
        image.save(tmp_path / "x.png", transparency=image.getpixel((0, 0)))
        assert_good(tmp_path / "x.png", (255, 255, 255))

    @pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
    def test_of_several_frames_the_first(self, name: str, tmp_path: Path) -> None:
        frames = [picture(colour=BLUE)]
        options: dict[str, Any] = {} if name == "x.tif" else {"duration": 50}
        picture().save(tmp_path / name, save_all=True, append_images=frames, **options)
        with Image.open(tmp_path / name) as image:
            assert getattr(image, "n_frames", 1) == 2
        assert_good(tmp_path / name, RED)

    def test_a_wrong_suffix(self, tmp_path: Path) -> None:
        picture().save(tmp_path / "really.jpg")
        (tmp_path / "really.jpg").rename(tmp_path / "x.png")
        assert_good(tmp_path / "x.png", RED)

    def test_a_link_out_of_the_tree(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        picture().save(tmp_path / "elsewhere.png")
        (tmp_path / "tree" / "x.png").symlink_to(tmp_path / "elsewhere.png")
        assert_good(tmp_path / "tree" / "x.png", RED)
        (record,) = ImageFolder.read(tmp_path / "tree").records()
        assert record["size"] == (tmp_path / "elsewhere.png").stat().st_size

    def test_a_large_scan_is_no_warning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture().save(tmp_path / "x.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_good(tmp_path / "x.png", RED)

    @pytest.mark.parametrize("kind", ["zTXt", "tEXt", "iTXt"])
    def test_long_texts_in_a_png(self, kind: str, tmp_path: Path) -> None:
        """Programs that generate images write how they did it, megabytes of it."""
        info = PngImagePlugin.PngInfo()
        if kind == "iTXt":
            info.add_itxt("parameters", "x" * 3_000_000, zip=True)
        else:
            info.add_text("parameters", "x" * 3_000_000, zip=kind == "zTXt")
        picture().save(tmp_path / "x.png", pnginfo=info)
        assert_good(tmp_path / "x.png", RED)

    @pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".jpe"])
    def test_jpeg_by_its_other_names(self, suffix: str, tmp_path: Path) -> None:
        picture().save(tmp_path / f"x{suffix}", format="JPEG", quality=95)
        assert_good(tmp_path / f"x{suffix}", RED)

    @pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
    def test_avif(self, tmp_path: Path) -> None:
        picture().save(tmp_path / "x.avif", quality=95)
        assert_good(tmp_path / "x.avif", RED)


class TestRefused:
    def test_a_bomb_of_text(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "MAX_TEXT_BYTES", 100_000)
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", "x" * 3_000_000, zip=True)
        picture().save(tmp_path / "x.png", pnginfo=info)
        assert "cannot be read as an image: Decompressed data too large" in problem_of(tmp_path / "x.png")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                b"\0\0\0\x18ftypheic" + bytes(40),
                "it is HEIC, which is not read; convert it to PNG with heif-convert",
            ),
            (b"\0\0\0\x18ftypmif1" + bytes(40), "it is HEIC"),
            (b"\xff\x0a" + bytes(40), "it is JPEG XL, which is not read; convert it to PNG with djxl"),
            (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "it is JPEG XL"),
        ],
    )
    def test_other_kinds_under_a_suffix_of_ours(self, content: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "x.jpg").write_bytes(content)
        assert said in problem_of(tmp_path / "x.jpg")

    def test_avif_where_pillow_reads_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It stays an image of the folder: otherwise it would be trained on here, and not there."""
        picture().save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / "y.png")
        (tmp_path / "x.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(40))
        monkeypatch.setattr(images, "find_spec", lambda name: None)
        images.supported_formats.cache_clear()
        try:
            assert ImageFolder.read(tmp_path).names == ("x.avif", "y.png")
            (tmp_path / "y.png").unlink()
            assert "pip install 'pillow>=11.3'" in problem_of(tmp_path / "x.avif")
        finally:
            images.supported_formats.cache_clear()

    def test_truncated(self, tmp_path: Path) -> None:
        Image.effect_noise((64, 64), 50).save(tmp_path / "x.jpg")
        content = (tmp_path / "x.jpg").read_bytes()
        (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
        assert "cannot be read as an image: image file is truncated" in problem_of(tmp_path / "x.jpg")

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", ": it is empty"), (b"no image", ": its 8 bytes are none of JPEG, PNG, WEBP, AVIF, BMP, TIFF")],
    )
    def test_no_image(self, content: bytes, words: str, tmp_path: Path) -> None:
        (tmp_path / "x.jpg").write_bytes(content)
        assert problem_of(tmp_path / "x.jpg") == " cannot be read as an image" + words

    @pytest.mark.parametrize("kind", ["GIF", "ICO", "PDF", "EPS", "PPM"])
    def test_another_kind_of_file(self, kind: str, tmp_path: Path) -> None:
        """Some readers of Pillow's start other programs: no file gets at them by its suffix."""
        picture().save(tmp_path / "x.png", format=kind)
        assert "are none of JPEG" in problem_of(tmp_path / "x.png")

    @pytest.mark.parametrize("size", [(1, 1), (7, 900)])
    def test_too_small(self, size: tuple[int, int], tmp_path: Path) -> None:
        Image.new("RGB", size).save(tmp_path / "x.png")
        assert problem_of(tmp_path / "x.png") == (
            f" cannot be trained on: {size[0]}x{size[1]} pixels; each side needs at least 8"
        )

    def test_too_many_pixels(self, tmp_path: Path) -> None:
        """One bit a pixel makes a small file of it; it is refused by its header, not decoded."""
        Image.new("1", (20000, 20000)).save(tmp_path / "x.png")
        assert " 20000x20000 is more than 180000000 pixels; scale it down" in problem_of(tmp_path / "x.png")
        assert images.MAX_PIXELS == 180_000_000

    def test_sixteen_bits_in_grey(self, tmp_path: Path) -> None:
        Image.new("I;16", SIZE, 900).save(tmp_path / "x.png")
        assert "is more than 8 bits a channel; save it with 8" in problem_of(tmp_path / "x.png")

    def test_a_dangling_link(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").symlink_to("gone.png")
        assert ": it is a link to gone.png, which does not exist" in problem_of(tmp_path / "x.png")

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").symlink_to("x.png")
        assert "cannot be read as an image" in problem_of(tmp_path / "x.png")

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        """Opening a pipe that nobody writes to would wait for ever."""
        os.mkfifo(tmp_path / "x.png")
        assert problem_of(tmp_path / "x.png") == " cannot be read as an image: it is not a regular file"

    def test_a_link_to_a_device(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").symlink_to("/dev/zero")
        assert problem_of(tmp_path / "x.png") == " cannot be read as an image: it is not a regular file"

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture().save(tmp_path / "x.png")
        if os.access(tmp_path / "x.png", os.R_OK) and os.geteuid() == 0:  # who may read everything

            def refuse(*args: object, **options: object) -> None:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(Image, "open", refuse)
        else:
            (tmp_path / "x.png").chmod(0)
        (bad,) = bad_images([ImageFolder.read(tmp_path)])
        assert bad.problem.endswith("x.png cannot be read as an image: Permission denied")
        assert not bad.lasting
