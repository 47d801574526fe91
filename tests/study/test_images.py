"""Which files are an artist's images, in which order, and what of them cannot be read."""

import hashlib
import os
import unicodedata
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimicry.study import images
from mimicry.study.image_checks import bad_images
from mimicry.study.images import IMAGE_SUFFIXES, ImageFolder, Reading, check_image, decode, read_rgb, stem_of
from tests.hostile_names import over_hostile_names

NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")


def touch(folder: Path, *names: str) -> ImageFolder:
    for name in names:
        (folder / name).touch()
    return ImageFolder.read(folder)


def problems_of(folder: ImageFolder) -> list[str]:
    return [bad.problem for bad in bad_images([folder])]


def paint(path: Path, size: tuple[int, int] = (13, 11)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3) * 5
    Image.fromarray(pixels).save(path)
    return path


class TestListing:
    @pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
    def test_suffixes_in_any_case(self, suffix: str, tmp_path: Path) -> None:
        names = (f"a{suffix}", f"b{suffix.upper()}", f"c{suffix.title()}")
        assert touch(tmp_path, *names).names == names

    def test_everything_else_is_ignored(self, tmp_path: Path) -> None:
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "link to a folder.png").symlink_to(tmp_path)
        others = [".hidden.png", "._a.jpg", ".png", "png", "notes.txt", "a.png.txt", "b.gif", "c.jpgx"]
        assert touch(tmp_path, *others, "painting.png").names == ("painting.png",)

    def test_links(self, tmp_path: Path) -> None:
        (tmp_path / "art").mkdir()
        original = paint(tmp_path / "original.png")
        (tmp_path / "art" / "a.png").symlink_to(original)
        (tmp_path / "art" / "b.png").symlink_to("nowhere")
        (tmp_path / "art" / "c.png").symlink_to("c.png")
        folder = ImageFolder.read(tmp_path / "art")
        assert folder.names == ("a.png", "b.png", "c.png")
        problems = problems_of(folder)
        assert len(problems) == 2
        assert all(name in problem for name, problem in zip(("b.png", "c.png"), problems, strict=True))

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "none", tmp_path / "file"):
            assert ImageFolder.read(path).names == ()

    def test_the_order_is_that_of_the_stems(self, tmp_path: Path) -> None:
        # By whole names "a-b" would come first, since "-" sorts before ".".
        folder = touch(tmp_path, "a.png", "a-b.jpg", "B.jpg", "10.jpg", "9.jpg", "Z.tiff", "é.jpg")
        assert folder.stems == ["10", "9", "B", "Z", "a", "a-b", "é"]
        assert [path.name for path in folder.paths] == list(folder.names)

    def test_the_order_is_the_same_for_other_suffixes_and_normal_forms(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        one.mkdir()
        two.mkdir()
        stems = ["z", f"caf{NFC}", "cafz", "cafe", "b.c"]
        first = touch(one, *(f"{stem}.jpg" for stem in stems))
        suffixes = (".PNG", ".webp", ".tif", ".bmp", ".jpeg")
        second = touch(
            two, *(unicodedata.normalize("NFD", s) + x for s, x in zip(stems, suffixes, strict=True))
        )
        assert first.stems == second.stems == ["b.c", "cafe", "cafz", f"caf{NFC}", "z"]

    @over_hostile_names
    def test_hostile_folders(self, hostile_name: str, tmp_path: Path) -> None:
        paint(tmp_path / hostile_name / "a.png")
        folder = ImageFolder.read(tmp_path / hostile_name)
        assert folder.names == ("a.png",)
        assert folder.problem() is None
        assert problems_of(folder) == []

    def test_names_that_are_no_utf8(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        paint(tmp_path / "a.png").rename(tmp_path / name)
        folder = ImageFolder.read(tmp_path)
        assert folder.names == (name,)
        assert problems_of(folder) == []


def test_stem_of() -> None:
    assert stem_of("a.b.png") == "a.b"
    assert stem_of(f"caf{NFD}.jpg") == stem_of(f"caf{NFC}.png") == f"caf{NFC}"


class TestProblem:
    def test_none(self, tmp_path: Path) -> None:
        assert touch(tmp_path, "a.png", "b.png", "A.png").problem() is None

    def test_no_image(self, tmp_path: Path) -> None:
        problem = touch(tmp_path, "notes.txt").problem()
        assert problem is not None
        assert problem.startswith(f"there is no image in {tmp_path}")
        assert ".jpg" in problem

    def test_repeated_stems(self, tmp_path: Path) -> None:
        folder = touch(tmp_path, "a.png", "a.jpg", "b.png", f"{NFC}.png", f"{NFD}.png")
        problem = folder.problem()
        assert problem is not None
        assert "'a'" in problem
        assert f"'{NFC}'" in problem
        assert "'b'" not in problem
        assert folder.stems.count("a") == 2


def test_records(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"bb")
    (tmp_path / "a.jpg").write_bytes(b"a")
    assert ImageFolder.read(tmp_path).records() == [
        {"name": "a.jpg", "size": 1, "sha256": hashlib.sha256(b"a").hexdigest()},
        {"name": "b.png", "size": 2, "sha256": hashlib.sha256(b"bb").hexdigest()},
    ]


class TestReadRgb:
    @pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
    def test_every_format(self, suffix: str, tmp_path: Path) -> None:
        image = read_rgb(paint(tmp_path / f"x{suffix}", (40, 30)))
        assert (image.mode, image.size) == ("RGB", (40, 30))

    @pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 2)), (6, (2, 0)), (8, (0, 3))])
    def test_exif_rotation(self, orientation: int, corner: tuple[int, int], tmp_path: Path) -> None:
        image = Image.new("RGB", (4, 3))
        image.putpixel((0, 0), (255, 0, 0))
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "x.png", exif=exif)
        turned = read_rgb(tmp_path / "x.png")
        assert turned.size == ((3, 4) if orientation in (6, 8) else (4, 3))
        assert turned.getpixel(corner) == (255, 0, 0)

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "LA"])
    def test_other_modes_become_rgb(self, mode: str, tmp_path: Path) -> None:
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new("RGB", (2, 2), (255, 255, 255)).convert(mode).save(tmp_path / f"x.{suffix}")
        image = read_rgb(tmp_path / f"x.{suffix}")
        assert image.mode == "RGB"
        assert image.getpixel((1, 1)) == (255, 255, 255)

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_sixteen_bits_are_refused(self, dtype: type, tmp_path: Path) -> None:
        """Pillow would turn all but the darkest of its values white, without a word."""
        Image.fromarray(np.full((2, 2), 900, dtype)).save(tmp_path / "x.tif")
        with pytest.raises(OSError, match=r"x\.tif cannot be read as an image: .*8 bits a channel"):
            read_rgb(tmp_path / "x.tif")

    @pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
    def test_truncated_empty_and_foreign(self, suffix: str, tmp_path: Path) -> None:
        whole = paint(tmp_path / f"x{suffix}", (64, 64)).read_bytes()
        for number, content in enumerate((b"", b"no image at all", whole[: len(whole) // 2], whole[:20])):
            (tmp_path / f"x{suffix}").unlink(missing_ok=True)
            (tmp_path / f"{number}{suffix}").write_bytes(content)
        folder = ImageFolder.read(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of some of them, before it gives up
            problems = problems_of(folder)
        assert len(problems) == len(folder.names) == 4
        for path, problem in zip(folder.paths, problems, strict=True):
            assert problem.startswith(f"{path} cannot be read as an image: ")

    def test_too_many_pixels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paint(tmp_path / "x.png", (64, 64))
        monkeypatch.setattr(images, "MAX_PIXELS", 1000)
        with pytest.raises(OSError, match=r"x\.png cannot be read as an image: 64x64 is more than"):
            read_rgb(tmp_path / "x.png")

    @pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
    def test_damage_is_never_another_error(self, suffix: str, tmp_path: Path) -> None:
        random, path = Random(suffix), tmp_path / f"x{suffix}"
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = np.random.Generator(np.random.Philox(1)).integers(0, 255, (24, 24, 3), np.uint8)
        options: dict[str, Any] = {} if suffix == ".bmp" else {"exif": exif}
        Image.fromarray(pixels).save(path, **options)
        whole, refused = path.read_bytes(), 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(250):
                damaged = bytearray(whole)
                for _ in range(random.choice((1, 3, 20))):
                    damaged[random.randrange(min(len(whole), 400))] = random.randrange(256)
                path.write_bytes(damaged)
                try:
                    assert read_rgb(path).mode == "RGB"
                except OSError as error:
                    refused += 1
                    assert path.name in str(error)
        assert 0 < refused < 250


def test_a_folder_that_cannot_be_listed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)

    folder = ImageFolder.read(tmp_path)

    assert folder.names == ()
    assert folder.problem() == f"{tmp_path} cannot be listed: Permission denied"


class TestSourceResolution:
    @pytest.mark.parametrize(
        ("size", "side", "reduced"),
        [
            ((160, 120), 60, (80, 60)),
            ((120, 160), 60, (60, 80)),
            ((160, 120), 120, (160, 120)),
            ((160, 120), 500, (160, 120)),
            ((161, 120), 60, (80, 60)),
            ((3000, 16), 16, (3000, 16)),
        ],
    )
    def test_the_shorter_side_is_reduced_and_none_is_enlarged(
        self, size: tuple[int, int], side: int, reduced: tuple[int, int], tmp_path: Path
    ) -> None:
        Image.new("RGB", size, "red").save(tmp_path / "a.png")
        picture, facts = decode(tmp_path / "a.png", Reading(source_resolution=side))
        assert picture.size == reduced
        assert (facts.width, facts.height) == size

    def test_the_file_itself_has_to_be_large_enough(self, tmp_path: Path) -> None:
        Image.new("RGB", (160, 7), "red").save(tmp_path / "a.png")
        with pytest.raises(OSError, match="160x7 pixels; each side needs at least 8"):
            check_image(tmp_path / "a.png", Reading(source_resolution=16))

    def test_it_is_turned_first(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (160, 120), "red").save(tmp_path / "a.jpg", exif=exif)
        assert read_rgb(tmp_path / "a.jpg", Reading(source_resolution=60)).size == (60, 80)
