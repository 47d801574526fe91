"""Images that are left out of all conditions: what is recorded, and what becomes of a broken record."""

import json
import threading
from pathlib import Path

import pytest

from mimicry.common.errors import BatchFault
from mimicry.study.cells import leave_out, left_out
from mimicry.study.image_checks import BadImage
from mimicry.study.images import stem_of
from mimicry.study.tree import Artist, StudyTree
from tests.hostile_names import over_hostile_names

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
