"""Images with their settings: equal for equal arguments, whole or not there."""

from pathlib import Path

import pytest
from PIL import Image

from mimicry.study.drawn_images import read_settings, save_sample

SETTINGS = {"prompt": "a boat, “signed” \udcff\n", "seed": 2**63 - 1, "guidance": 4.5, "adapter": None}


def picture() -> Image.Image:
    return Image.frombytes("RGB", (4, 4), bytes(range(48)))


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.png"
    save_sample(path, picture(), SETTINGS)

    assert read_settings(path) == SETTINGS
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.tobytes() == picture().tobytes()


def test_equal_settings_are_equal_bytes(tmp_path: Path) -> None:
    for name, settings in (("a", SETTINGS), ("b", dict(reversed(SETTINGS.items())))):
        save_sample(tmp_path / name, picture(), settings)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "no object"])
def test_a_file_without_settings_has_none(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if damage == "other":
        picture().save(path)
    elif damage == "no object":
        save_sample(path, picture(), ["a list"])  # type: ignore[arg-type]
    else:
        save_sample(path, picture(), SETTINGS)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - 30] if damage == "cut" else b"")

    assert read_settings(path) is None


def test_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_settings(tmp_path / "a.png")


def test_a_picture_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write mode"):
        save_sample(tmp_path / "a.png", Image.new("F", (2, 2)), SETTINGS)

    assert list(tmp_path.iterdir()) == []
