"""Checks of many images, and what is remembered of them."""

import json
import os
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, features

from mimicry.study import image_checks
from mimicry.study.image_checks import bad_images, stated_sizes, unreadable
from mimicry.study.images import IMAGE_SUFFIXES, ImageFacts, ImageFolder, Reading, check_image, read_rgb
from tests.hostile_names import over_hostile_names


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the images that are decoded, with a memory of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: list[str] = []

    def check(path: Path, reading: Reading) -> tuple[Image.Image, ImageFacts]:
        names.append(path.name)
        return check_image(path, reading)

    monkeypatch.setattr(image_checks, "check_image", check)
    return names


def write(folder: Path, *stems: str) -> ImageFolder:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (9, 9)).save(folder / f"{stem}.png")
    return ImageFolder.read(folder)


def memories(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "mimicry" / "images").iterdir())


def test_good_ones_are_decoded_once(decoded: list[str], tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", "a", "b"), write(tmp_path / "two", "a")
    told: list[tuple[int, int]] = []

    assert bad_images([one, two], lambda *done: told.append(done)) == []
    assert sorted(decoded) == ["a.png", "a.png", "b.png"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(memories(tmp_path)) == 2
    assert bad_images([one, two], lambda *done: told.append(done)) == []
    assert len(decoded) == len(told) == 3


def test_one_that_has_changed_is_decoded_again(decoded: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "one", "a", "b", "c")
    bad_images([folder])
    decoded.clear()
    path = tmp_path / "one" / "a.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (tmp_path / "one" / "b.png").write_bytes((tmp_path / "one" / "b.png").read_bytes()[:40])

    (bad,) = bad_images([folder])

    assert bad.path.name == "b.png"
    assert bad.lasting
    assert sorted(decoded) == ["a.png", "b.png"]


def test_bad_ones_are_decoded_each_time_and_come_in_order(decoded: list[str], tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", "a", "b"), write(tmp_path / "two", "c", "d")
    for path in (one.paths[1], *two.paths):
        path.write_bytes(b"")

    for _ in range(2):
        assert [bad.path for bad in bad_images([one, two])] == [one.paths[1], *two.paths]
    assert decoded.count("a.png") == 1
    assert decoded.count("c.png") == 2


def test_anew_means_all_of_them(decoded: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "one", "a", "b")
    bad_images([folder])
    rot = folder.paths[0]
    status = rot.stat()
    rot.write_bytes(bytes(status.st_size))
    os.utime(rot, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert bad_images([folder]) == []

    for anew in (True, False):
        (bad,) = bad_images([folder], anew=anew)
        assert bad.path == rot
    # What turned out bad was forgotten.
    assert sorted(decoded) == ["a.png", "a.png", "a.png", "b.png", "b.png"]


def test_many_of_a_folder_are_one_line(tmp_path: Path) -> None:
    few, many = write(tmp_path / "few", "a", "b"), write(tmp_path / "many", *map(str, range(20)))
    for path in (*few.paths, *many.paths):
        path.write_bytes(b"")

    lines = unreadable(bad_images([few, many]))

    assert len(lines) == 3
    assert all(str(path) in line for path, line in zip(few.paths, lines, strict=False))
    assert f"; and 19 more images of {many.path} cannot be used" in lines[2]


def test_one_that_is_not_there_is_bad(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", "a")
    folder.paths[0].unlink()

    (bad,) = bad_images([folder])
    assert not bad.lasting


@over_hostile_names
def test_any_name(hostile_name: str, decoded: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / hostile_name, "a")

    assert bad_images([folder]) == bad_images([folder]) == []
    assert decoded == ["a.png"]


def test_several_at_once_do_no_harm(decoded: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "one", *map(str, range(8)))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(bad_images([folder]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [[]] * 6
    (memory,) = memories(tmp_path)
    assert len(json.loads(memory.read_text())["good"]) == 8
    decoded.clear()
    assert bad_images([folder]) == []
    assert decoded == []


def test_a_stop_ends_it_and_keeps_what_was_found(
    decoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "one", *map(str, range(100)))
    monkeypatch.setattr(image_checks, "MOST_THREADS", 1)

    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bad_images([folder], stop)
    assert 1 <= len(decoded) < 100
    (memory,) = memories(tmp_path)
    assert len(json.loads(memory.read_text())["good"]) == len(decoded)


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
