"""Copies of pictures: made once, of what they show, and of nothing that cannot be read."""

from pathlib import Path

import pytest
from PIL import Image

from mimicry.common.errors import BatchFault
from mimicry.report.pictures import GAIN, LARGE, PICTURES, SMALL, PictureFolder, Shot


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def listing(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.webp")}


def colour_of(path: Path) -> object:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((image.width // 2, image.height // 2))


def test_copies_show_the_picture_and_the_difference(tmp_path: Path) -> None:
    own = paint(tmp_path / "study" / "a.png", (100, 50, 20))
    changed = paint(tmp_path / "study" / "b.png", (103, 50, 255))
    plain, difference = Shot(changed), Shot(changed, own)

    copies = PictureFolder(tmp_path / "report", tmp_path / "study").copies([plain, difference, plain])

    assert copies.keys() == {plain, difference}
    assert (copies[plain].width, copies[plain].height) == (40, 30)
    assert colour_of(tmp_path / "report" / copies[plain].large) == (103, 50, 255)
    assert colour_of(tmp_path / "report" / copies[difference].small) == (3 * GAIN, 0, 255)


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    shot = Shot(paint(tmp_path / "a.png", (1, 2, 3), (2000, 1000)))

    copy = PictureFolder(tmp_path / "report", tmp_path).copies([shot])[shot]

    assert (copy.width, copy.height) == (SMALL, SMALL // 2)
    with Image.open(tmp_path / "report" / copy.large) as large:
        assert large.size == (LARGE, LARGE // 2)


def test_a_difference_of_other_sizes_is_taken_at_that_of_the_picture(tmp_path: Path) -> None:
    own = paint(tmp_path / "a.png", (100, 100, 100), (40, 40))
    changed = paint(tmp_path / "b.png", (101, 100, 100), (20, 20))
    shot = Shot(changed, own)

    copy = PictureFolder(tmp_path / "report", tmp_path).copies([shot])[shot]

    assert (copy.width, copy.height) == (20, 20)
    assert colour_of(tmp_path / "report" / copy.large) == (GAIN, 0, 0)


def test_what_has_not_changed_is_not_made_again(tmp_path: Path) -> None:
    report, study = tmp_path / "report", tmp_path / "study"
    kept, changed = (
        paint(study / name, (9, 9, 9), (40, side)) for name, side in (("a.png", 30), ("b.png", 31))
    )
    gone = paint(study / "c.png", (9, 9, 9), (40, 32))
    shots = [Shot(kept), Shot(changed), Shot(gone)]
    first = PictureFolder(report, study).copies(shots)
    before = listing(report / PICTURES)
    moved = study.rename(tmp_path / "moved")
    paint(moved / "b.png", (200, 9, 9))

    second = PictureFolder(report, moved).copies([Shot(moved / "a.png"), Shot(moved / "b.png")])

    after = listing(report / PICTURES)
    assert len(before) == 6
    assert second[Shot(moved / "a.png")] == first[Shot(kept)]
    names = {Path(name).name for name in (first[Shot(kept)].small, first[Shot(kept)].large)}
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert len(after) == 4


def test_the_contents_of_a_source_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shot = Shot(paint(tmp_path / "a.png", (9, 9, 9)))
    first = PictureFolder(tmp_path / "report", tmp_path).copies([shot])

    def refuse(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr("mimicry.report.pictures.sha256_file", refuse)
    monkeypatch.setattr("mimicry.report.pictures.read_rgb", refuse)

    assert PictureFolder(tmp_path / "report", tmp_path).copies([shot]) == first


@pytest.mark.parametrize(
    "content", [b"[]", b'{"version": 1, "files": {"a.png": 3}}', b"\xff", b'{"version": 0}']
)
def test_a_damaged_memory_is_ignored(tmp_path: Path, content: bytes) -> None:
    shot = Shot(paint(tmp_path / "a.png", (9, 9, 9)))
    first = PictureFolder(tmp_path / "report", tmp_path).copies([shot])
    (tmp_path / "report" / PICTURES / "sources.json").write_bytes(content)

    assert PictureFolder(tmp_path / "report", tmp_path).copies([shot]) == first


def test_what_cannot_be_read_has_no_copy(tmp_path: Path) -> None:
    good = paint(tmp_path / "a.png", (9, 9, 9))
    (tmp_path / "b.png").write_bytes(b"nothing")
    shots = [
        Shot(good),
        Shot(tmp_path / "b.png"),
        Shot(tmp_path / "none.png"),
        Shot(good, tmp_path / "b.png"),
    ]

    assert list(PictureFolder(tmp_path / "report", tmp_path).copies(shots)) == [Shot(good)]


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    shot = Shot(paint(tmp_path / "a.png", (9, 9, 9)))
    note = tmp_path / "report" / PICTURES / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")

    PictureFolder(tmp_path / "report", tmp_path).copies([shot])
    PictureFolder(tmp_path / "report", tmp_path).copies([])

    assert note.read_text() == "mine"
    assert listing(tmp_path / "report" / PICTURES) == {}


def test_a_disk_without_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    shot = Shot(paint(tmp_path / "a.png", (9, 9, 9)))
    monkeypatch.setattr(Image.Image, "save", no_room)

    with pytest.raises(BatchFault, match="No space left"):
        PictureFolder(tmp_path / "report", tmp_path).copies([shot])
