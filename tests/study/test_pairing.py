"""Pairs told from names: what tools put around the original's name, and what is not guessed."""

import random
import shutil
from pathlib import Path
from random import Random

import pytest

from mimicry.study.images import ImageFolder
from mimicry.study.pairing import SAME_NAME, Pairing, held_out, hold_out_problem, training_set
from tests.hostile_names import HOSTILE_NAMES
from tests.small_study import write_images

BOATS = ("01_boat", "02_boat_at_sea", "03_hills", "12_hills")


def folder(path: Path, names: tuple[str, ...] | list[str]) -> ImageFolder:
    path.mkdir()
    for name in names:
        (path / name).touch()
    return ImageFolder.read(path)


def pair(tmp_path: Path, names: list[str], originals: tuple[str, ...] = BOATS) -> Pairing:
    """Pair files of these names with PNGs of these stems."""
    return Pairing.of(
        folder(tmp_path / "set", names), folder(tmp_path / "originals", [f"{stem}.png" for stem in originals])
    )


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("{}.png", SAME_NAME),
        ("{}.JPG", SAME_NAME),
        ("50_noise_{}.png", "prefix '50_noise_'"),
        (
            "{}-glazed-intensity-MEDIUM-render-quality-DEFAULT.png",
            "suffix '-glazed-intensity-MEDIUM-render-quality-DEFAULT'",
        ),
        ("misted {} (1).webp", "prefix 'misted ' and suffix ' (1)'"),
        ("{}_16_100_512_1_2_1.png", "suffix '_16_100_512_1_2_1'"),
        # No boundary, and yet there is no other way to understand the whole set.
        ("protected{}.png", "prefix 'protected'"),
        ("{}x2.png", "suffix 'x2'"),
    ],
)
def test_what_tools_write(template: str, rule: str, tmp_path: Path) -> None:
    pairing = pair(tmp_path, [template.format(stem) for stem in BOATS])

    assert pairing.images.stems == list(BOATS)
    assert pairing.problem == ""
    for name, stem in zip(pairing.images.names, BOATS, strict=True):
        assert pairing.partner(name) == f"{stem}.png"
        assert pairing.rule(name) == rule
    assert (pairing.note == "") == (rule == SAME_NAME)
    assert rule == SAME_NAME or f"{rule} (4 of 4)" in pairing.note


def test_numbers_are_not_taken_for_parts_of_other_numbers(tmp_path: Path) -> None:
    numbers = tuple(map(str, range(1, 61)))
    pairing = pair(tmp_path, [f"50_noise_{number}.png" for number in numbers], numbers)

    assert pairing.problem == ""
    assert all(name == f"50_noise_{pairing.images.stem(name)}.png" for name in pairing.images.names)


def test_several_strengths_in_one_set(tmp_path: Path) -> None:
    names = [f"{stem}-glazed-{'LOW' if stem < '03' else 'HIGH'}.png" for stem in BOATS]
    pairing = pair(tmp_path, names)

    assert pairing.images.stems == list(BOATS)
    assert pairing.problem == ""
    assert {pairing.rule(name) for name in names} == {"suffix '-glazed-LOW'", "suffix '-glazed-HIGH'"}


def test_the_order_is_that_of_the_originals(tmp_path: Path) -> None:
    # By their own names the second would come first.
    pairing = pair(tmp_path, ["b_01_boat.png", "a_02_boat_at_sea.png", "c_03_hills.png", "d_12_hills.png"])

    assert pairing.images.names == (
        "b_01_boat.png",
        "a_02_boat_at_sea.png",
        "c_03_hills.png",
        "d_12_hills.png",
    )
    assert pairing.images.stems == list(BOATS)


def test_a_set_that_is_not_finished(tmp_path: Path) -> None:
    pairing = pair(tmp_path, ["50_noise_01_boat.png", "50_noise_12_hills.png"])

    assert pairing.problem == "lacks '02_boat_at_sea', '03_hills' of original_art"
    assert pairing.images.stems == ["01_boat", "12_hills"]


def test_strangers(tmp_path: Path) -> None:
    names = [*(f"n_{stem}.png" for stem in BOATS), "sunset.png", "m_01_boat.png"]
    pairing = pair(tmp_path, names)

    # The original of the last one is taken.
    assert pairing.problem == "has 'm_01_boat', 'sunset' that original_art has not"
    assert pairing.partner("sunset.png") is None
    assert pairing.rule("m_01_boat.png") is None
    assert pairing.partner("n_01_boat.png") == "01_boat.png"


def test_nothing_pairs(tmp_path: Path) -> None:
    pairing = pair(tmp_path, ["a.png", "b.png"])

    assert len(pairing.strangers) == 2
    assert pairing.lacking == list(BOATS)


def test_what_may_be_either_is_not_guessed(tmp_path: Path) -> None:
    pairing = pair(tmp_path, ["50_noise_1.png"], ("1", "50"))

    assert pairing.strangers == ["50_noise_1"]


def test_the_longer_of_two_names_that_hold_each_other(tmp_path: Path) -> None:
    pairing = pair(tmp_path, ["x_boat_at_sea.png"], ("boat", "boat_at_sea"))

    assert pairing.partner("x_boat_at_sea.png") == "boat_at_sea.png"


def test_without_leaves_pairs_out_by_the_stem_of_the_original(tmp_path: Path) -> None:
    pairing = pair(tmp_path, [f"50_noise_{stem}.png" for stem in BOATS]).without(["03_hills"])

    assert pairing.images.names == tuple(f"50_noise_{stem}.png" for stem in BOATS if stem != "03_hills")
    assert pairing.problem == ""
    assert "(3 of 3)" in pairing.note


def test_the_original_art_itself_has_no_partners(tmp_path: Path) -> None:
    original = folder(tmp_path / "originals", ["a.png"])

    for pairing in (Pairing.of(original, original), Pairing.of(original, None)):
        assert (pairing.original, pairing.problem, pairing.partner("a.png")) == (None, "", None)


def test_two_files_of_one_stem_are_reported_as_such(tmp_path: Path) -> None:
    pairing = pair(tmp_path, ["x_01_boat.png", "x_01_boat.jpg"])

    assert "share the stem 'x_01_boat'" in str(pairing.images.problem())


# A longer one has no room for anything before it, and one with a dot is hidden.
@pytest.mark.parametrize(
    "hostile_name",
    [name for name in HOSTILE_NAMES if len(name.encode()) <= 200 and not name.startswith(".")],
    ids=ascii,
)
def test_hostile_names(hostile_name: str, tmp_path: Path) -> None:
    originals = (hostile_name, "plain", "other")
    pairing = pair(tmp_path, [f"50_noise_{stem}.png" for stem in originals], originals)

    assert pairing.problem == ""
    assert {pairing.rule(name) for name in pairing.images.names} == {"prefix '50_noise_'"}


def test_any_affix_around_any_names(tmp_path: Path) -> None:
    """Random names, numbers among them: whole sets always pair, and to the right originals."""
    random = Random(11)
    for number in range(60):
        stems = tuple({"".join(random.choices("ab1_-", k=random.randint(1, 6))) for _ in range(8)})
        prefix = random.choice(["", "50_noise_", "a1-", "glazed "])
        suffix = random.choice(["", "_b1", "-glazed-intensity-1", " (2)"])
        (tmp_path / str(number)).mkdir()
        pairing = pair(tmp_path / str(number), [f"{prefix}{stem}{suffix}.png" for stem in stems], stems)
        assert pairing.problem == "", (prefix, suffix, stems)
        for name in pairing.images.names:
            own = name.removesuffix(".png")
            stem = pairing.images.stem(name)
            # Equal names come first; in such a set they may be those of other paintings, which pixels tell.
            if (
                not set(stems) & {f"{prefix}{each}{suffix}" for each in stems}
                or own == f"{prefix}{stem}{suffix}"
            ):
                assert own == f"{prefix}{stem}{suffix}"


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
