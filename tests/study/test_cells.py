"""The images of a study's cells, and which cells have some."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mimicry.study.cells import CellImages
from mimicry.study.hold_out import held_out
from mimicry.study.tree import Condition, StudyTree
from tests.small_study import (
    ANNA,
    BORIS,
    MIST,
    ORIGINAL,
    STEMS,
    original,
    write_study,
)


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "study", [ANNA, BORIS])


class TestImages:
    def test_each_is_paired_with_the_original_and_without_the_quarantine(self, tree: StudyTree) -> None:
        folder = tree.images_of(tree.protected_art / "mist", ANNA)
        for path in list(folder.iterdir()):
            path.rename(folder / f"50_noise_{path.name}")
        tree.quarantine.parent.mkdir()
        tree.quarantine.write_text(json.dumps({"images": {str(ANNA): {"02_boat": {}}}}))

        found = CellImages(tree).of(MIST, ANNA)

        assert found is not None
        assert found.images.names == ("50_noise_01_tree.png", "50_noise_03_hills.png")
        assert found.images.stems == ["01_tree", "03_hills"]
        assert found.problem == ""

    def test_there_are_none_without_files_or_without_a_folder(self, tree: StudyTree) -> None:
        shutil.rmtree(original(tree, BORIS))
        images = CellImages(tree)

        assert images.of(ORIGINAL, BORIS) is None
        assert images.of(Condition("glaze"), ANNA) is None
        assert images.source(Condition("glaze")) is None
        assert images.of(MIST, BORIS) is not None

    def test_they_are_listed_once(self, tree: StudyTree) -> None:
        images = CellImages(tree)
        sizes = [path.stat().st_size for path in sorted(original(tree).iterdir())]
        names = ["01_tree", "02_boat", "03_hills"]
        expected = [
            {"name": f"{name}.png", "size": size, "stem": name}
            for name, size in zip(names, sizes, strict=True)
        ]

        found = images.listing(ORIGINAL, ANNA)
        assert found is not None
        assert found.records == expected
        shutil.rmtree(original(tree))
        assert images.listing(ORIGINAL, ANNA) == found
        assert images.listing(Condition("glaze"), ANNA) is None

    def test_a_listing_changes_with_every_file(self, tree: StudyTree) -> None:
        def fingerprint() -> str:
            found = CellImages(tree).listing(ORIGINAL, ANNA)
            assert found is not None
            return found.fingerprint

        before, path = fingerprint(), original(tree) / "01_tree.png"
        assert fingerprint() == before
        times = path.stat()
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert fingerprint() != before

    def test_one_that_is_gone_is_not_listed(self, tree: StudyTree) -> None:
        (original(tree) / "04_dangling.png").symlink_to("nowhere.png")

        assert CellImages(tree).listing(ORIGINAL, ANNA) is None

    def test_held_out_paintings_are_not_among_them(self, tree: StudyTree) -> None:
        images = CellImages(tree)
        (held,) = held_out(STEMS, 1)
        found = images.of(MIST, ANNA, 1)
        assert found is not None
        assert set(found.images.stems) == set(STEMS) - {held}
        kept, whole = images.listing(MIST, ANNA, 1), images.listing(MIST, ANNA)
        assert kept is not None and whole is not None
        assert [image["stem"] for image in kept.records] == found.images.stems
        assert len(whole.records) == len(STEMS)

    def test_artists_are_those_of_the_original_art_and_of_the_sources(self, tree: StudyTree) -> None:
        shutil.rmtree(original(tree, BORIS))

        assert CellImages(tree).artists([ORIGINAL]) == {ANNA}
        assert CellImages(tree).artists([MIST, Condition("glaze")]) == {ANNA, BORIS}
