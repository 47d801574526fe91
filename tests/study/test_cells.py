"""The images of a study's cells, and which cells have some."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from mimicry.common.errors import BatchFault
from mimicry.study.cells import CellImages, leave_out, left_out
from mimicry.study.image_checks import BadImage
from mimicry.study.images import stem_of
from mimicry.study.pairing import held_out
from mimicry.study.tree import Artist, Condition, StudyTree
from tests.hostile_names import over_hostile_names
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


ANNA = Artist("historical", "baroque", "Anna_Berg")


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return StudyTree(tmp_path / "study")


def bad(tree: StudyTree, artist: Artist, name: str) -> BadImage:
    path = tree.images_of(tree.protected_art / "mist", artist) / name
    return BadImage(path, f"{path} cannot be read as an image: it is empty", lasting=True, stem=stem_of(name))


def test_none(tree: StudyTree) -> None:
    assert left_out(tree) == {}
    assert not tree.data_root.exists()


def test_what_is_left_out_is_recorded_once(tree: StudyTree) -> None:
    leave_out(tree, [(ANNA, bad(tree, ANNA, "b.png")), (ANNA, bad(tree, ANNA, "cafe\u0301.jpg"))])
    before = json.loads(tree.quarantine.read_text())
    leave_out(tree, [(ANNA, bad(tree, ANNA, "b.jpg"))])

    assert left_out(tree) == {str(ANNA): {"b", "café"}}
    assert json.loads(tree.quarantine.read_text()) == before
    entry = before["images"][str(ANNA)]["b"]
    assert entry.pop("since").endswith("+00:00")
    # Nothing of this machine's paths.
    assert entry == {
        "file": "protected_art/mist/historical/baroque/Anna_Berg/b.png",
        "problem": "it cannot be read as an image: it is empty",
    }


@over_hostile_names
def test_any_name(hostile_name: str, tree: StudyTree) -> None:
    artist = Artist("historical", hostile_name, hostile_name)
    leave_out(tree, [(artist, bad(tree, artist, hostile_name[:50] + ".png"))])

    assert list(left_out(tree)) == [str(artist)]


def test_several_at_once(tree: StudyTree) -> None:
    artists = [Artist("historical", "baroque", str(number)) for number in range(12)]
    threads = [
        threading.Thread(target=leave_out, args=(tree, [(artist, bad(tree, artist, "a.png"))]))
        for artist in artists
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert left_out(tree) == {str(artist): {"a"} for artist in artists}


@pytest.mark.parametrize("content", ["", "[1", "[]", "{}", '{"images": 7}', '{"images": {"a/b/c": ["x"]}}'])
def test_a_broken_record_is_no_empty_one(tree: StudyTree, content: str) -> None:
    tree.quarantine.parent.mkdir(parents=True)
    tree.quarantine.write_text(content)

    for act in (lambda: left_out(tree), lambda: leave_out(tree, [(ANNA, bad(tree, ANNA, "a.png"))])):
        with pytest.raises(BatchFault, match=r"quarantine\.json cannot be used .*repair it, or move it away"):
            act()
    assert tree.quarantine.read_text() == content


def test_keys_that_we_do_not_know_survive(tree: StudyTree) -> None:
    tree.quarantine.parent.mkdir(parents=True)
    tree.quarantine.write_text(json.dumps({"images": {"a/b/c": {"x": {"by": "hand"}}}, "tomorrow": 1}))
    leave_out(tree, [(ANNA, bad(tree, ANNA, "a.png"))])

    content = json.loads(tree.quarantine.read_text())
    assert content["tomorrow"] == 1
    assert content["images"]["a/b/c"] == {"x": {"by": "hand"}}
