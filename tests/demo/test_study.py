"""The drawn tree is the documented one, and whole."""

from pathlib import Path

import pytest
from PIL import Image

from mimicry.demo.study import PAINTERS, Painter, draw_painting
from mimicry.demo.variants import VariantMaker
from mimicry.study.images import ImageFolder
from mimicry.study.tree import Condition, StudyTree

CONDITIONS = [Condition(), Condition("mist"), Condition("mist", "noisy_upscaling")]


@pytest.fixture(scope="module")
def maker() -> VariantMaker:
    return VariantMaker.load()


@pytest.fixture
def tree(demo_dir: Path) -> StudyTree:
    return StudyTree(demo_dir / "style_mimicry")


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_a_condition_has_all_artists_and_all_their_stems(tree: StudyTree, condition: Condition) -> None:
    source = tree.source(condition)

    assert source.names_protection
    assert tree.artists(source.root) == sorted(painter.artist for painter in PAINTERS)
    for artist in tree.artists(source.root):
        pictures = ImageFolder.read(tree.images_of(source.root, artist))
        assert pictures.stems == ImageFolder.read(tree.images_of(tree.original_art, artist)).stems
        assert len(set(pictures.stems)) == 20


def test_three_styles_of_two_artists_with_hostile_names() -> None:
    styles = [painter.artist.style for painter in PAINTERS]
    names = "".join(painter.artist.name for painter in PAINTERS)

    assert sorted(styles) == sorted(["baroque", "cubism", "impressionism"] * 2)
    assert "'" in names
    assert not names.isascii()


def test_originals_have_mixed_formats_shapes_and_sizes(tree: StudyTree) -> None:
    for artist in tree.artists(tree.original_art):
        paths = ImageFolder.read(tree.images_of(tree.original_art, artist)).paths
        sizes = [_size(path) for path in paths]
        assert {path.suffix for path in paths} == {".jpg", ".jpeg", ".png", ".webp"}
        assert len(set(sizes)) > 10
        assert min(min(size) for size in sizes) >= 64
        assert max(max(size) for size in sizes) <= 112


def test_upscaled_pictures_are_twice_as_large(tree: StudyTree) -> None:
    for artist in tree.artists(tree.original_art):
        upscaled_root = tree.source(Condition("mist", "noisy_upscaling")).root
        mist = ImageFolder.read(tree.images_of(tree.source(Condition("mist")).root, artist)).paths
        upscaled = ImageFolder.read(tree.images_of(upscaled_root, artist)).paths
        for before, after in zip(mist, upscaled, strict=True):
            width, height = _size(before)
            assert _size(after) == (2 * width, 2 * height)


@pytest.mark.parametrize("painter", PAINTERS, ids=lambda painter: painter.artist.name)
def test_a_painting_does_not_depend_on_the_others(
    tree: StudyTree, painter: Painter, maker: VariantMaker, tmp_path: Path
) -> None:
    draw_painting(StudyTree(tmp_path), painter, 13, seed=7, maker=maker)

    alone = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("14_*")}
    assert len(alone) == 3
    assert alone == {name: (tree.data_root / name).read_bytes() for name in alone}


def test_another_seed_draws_another_painting(tree: StudyTree, maker: VariantMaker, tmp_path: Path) -> None:
    draw_painting(StudyTree(tmp_path), PAINTERS[0], 0, seed=8, maker=maker)

    (drawn,) = (tmp_path / "original_art").rglob("01_*")
    assert drawn.read_bytes() != (tree.data_root / drawn.relative_to(tmp_path)).read_bytes()


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as opened:
        return opened.size
