"""Which paintings are held out: the same in every condition, whatever the names of its files."""

import random
import shutil
from pathlib import Path

import pytest

from mimicry.study.hold_out import held_out, hold_out_problem, training_set
from mimicry.study.images import ImageFolder
from tests.small_study import write_images

TWENTY = [f"{number:02d}_{word}" for number, word in enumerate(("hills", "boat", "tree", "sun") * 5, start=1)]


def test_the_choice_is_pinned() -> None:
    # Golden: another choice would make all studies with held-out paintings incomparable with new ones.
    assert held_out(TWENTY, 4) == ("01_hills", "02_boat", "12_sun", "13_hills")
    assert held_out(["Été", "雨", "a\udce9b", "x"], 2) == ("x", "\u96e8")


def test_it_does_not_depend_on_the_order_and_grows_by_one() -> None:
    shuffled = random.Random(1).sample(TWENTY, len(TWENTY))
    assert held_out(shuffled, 6) == held_out(TWENTY, 6)
    for count in range(len(TWENTY)):
        assert set(held_out(TWENTY, count)) < set(held_out(TWENTY, count + 1))


@pytest.mark.parametrize(("count", "found"), [(0, 0), (1, 1), (20, 20), (21, 20)])
def test_how_many(count: int, found: int) -> None:
    assert len(held_out(TWENTY, count)) == found


@pytest.fixture
def original(tmp_path: Path) -> ImageFolder:
    return write_images(tmp_path / "original", TWENTY)


class TestTrainingSet:
    def test_every_condition_leaves_out_the_same_paintings(
        self, original: ImageFolder, tmp_path: Path
    ) -> None:
        renamed = tmp_path / "renamed"
        renamed.mkdir()
        for path in original.paths:
            shutil.copy(path, renamed / f"50_noise_{path.name}")
        lacking = write_images(tmp_path / "lacking", TWENTY[3:])

        plain = training_set(original, original, (), 4)
        mist = training_set(ImageFolder.read(renamed), original, (), 4)
        few = training_set(lacking, original, (), 4)

        assert plain.images.stems == mist.images.stems
        assert set(plain.images.stems) == set(TWENTY) - set(held_out(TWENTY, 4))
        assert set(few.images.stems) == set(TWENTY[3:]) - set(held_out(TWENTY, 4))
        assert plain.original is None
        assert mist.original is not None
        assert mist.original.stems == mist.images.stems

    def test_what_is_bad_is_not_counted_among_the_held_out(self, original: ImageFolder) -> None:
        bad = held_out(TWENTY, 1)
        stems = training_set(original, original, bad, 1).images.stems
        assert len(stems) == 18
        assert set(TWENTY) - set(stems) == {*bad, *held_out(set(TWENTY) - set(bad), 1)}

    def test_a_name_within_the_name_of_a_held_out_painting_is_not_mistaken(self, tmp_path: Path) -> None:
        stems = ["boat", "boat_2", "boat_2_b"]
        original = write_images(tmp_path / "original", stems)
        images = write_images(tmp_path / "set", [f"{stem}-glazed" for stem in stems])
        for count in range(3):
            pairing = training_set(images, original, (), count)
            assert pairing.images.names == tuple(f"{stem}-glazed.png" for stem in pairing.images.stems)


class TestProblems:
    def test_nothing_is_asked_for(self, tmp_path: Path) -> None:
        empty = ImageFolder.read(tmp_path / "nowhere")
        assert hold_out_problem(empty, empty, 0) is None

    def test_no_original(self, original: ImageFolder, tmp_path: Path) -> None:
        empty = ImageFolder.read(tmp_path / "nowhere")
        problem = hold_out_problem(empty, original, 4)
        assert problem is not None
        assert "there is no image in" in problem
        assert str(tmp_path / "nowhere") in problem

    @pytest.mark.parametrize(("count", "fits"), [(19, True), (20, False), (30, False)])
    def test_at_least_one_must_stay(self, count: int, fits: bool, original: ImageFolder) -> None:
        images = training_set(original, original, (), count).images
        problem = hold_out_problem(original, images, count)
        assert (problem is None) is fits
        if problem is not None:
            assert f"--hold-out {count} leaves no image to train on, of 20 in" in problem
            assert "at most 19" in problem

    def test_a_set_of_held_out_paintings_alone(self, original: ImageFolder, tmp_path: Path) -> None:
        lacking = write_images(tmp_path / "lacking", held_out(TWENTY, 4)[:2])
        images = training_set(lacking, original, (), 4).images
        problem = hold_out_problem(original, images, 4)
        assert problem is not None
        assert f"all in {lacking.path} are of paintings that are held out" in problem
