"""The pack for raters: fair pairs, no names, a key apart, and scores that can be trusted."""

import csv
import re
from pathlib import Path

import pytest
from PIL import Image

from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.processes import run_command
from mimicry.report.grids import GridMaker
from mimicry.report.make_report import report
from mimicry.report.rating_pack import (
    KEY,
    PACK,
    KeyRow,
    SamplePair,
    choose_pairs,
    key_text,
    pairs_of,
    read_scores,
    score_table,
    write_rating_pack,
)
from mimicry.study.tree import StudyTree
from tests.report.made_up import CONDITIONS, LOSSES, PROMPT, content_of, put, put_all, put_samples
from tests.small_study import ANNA, BORIS, COUNTERED, MIST, ORIGINAL

BOAT = "a painting of a boat in the style of sks"


def pairs_in(tree: StudyTree) -> list[SamplePair]:
    group = content_of(tree).main.group
    maker = GridMaker(tree, group, paintings=2, samples=10)
    return pairs_of(maker.grid(artist) for artist in group.artists)


def drawn(tree: StudyTree) -> StudyTree:
    """Return the study with samples of all artists, each condition in a colour of its own."""
    put_all(tree)
    for artist in LOSSES:
        for number, condition in enumerate(CONDITIONS):
            colour = (60 + 60 * number, 80, 90)
            put_samples(tree, condition, artist, prompts=(PROMPT, BOAT), colour=colour)
    return tree


def read_key(folder: Path) -> list[dict[str, str]]:
    with (folder / KEY).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def colour_of(path: Path) -> object:
    with Image.open(path) as image:
        assert image.info == {}
        return image.getpixel((0, 0))


def test_a_pair_differs_in_the_condition_alone(tree: StudyTree) -> None:
    pairs = pairs_in(drawn(tree))

    assert len(pairs) == 2 * 2 * len(LOSSES)
    assert {pair.condition for pair in pairs} == {"mist", "mist + noisy_upscaling"}
    for pair in pairs:
        assert pair.original.name == pair.other.name
        assert pair.original.parent != pair.other.parent
        assert pair.artist in str(pair.original)
        assert pair.artist in str(pair.other)
        assert [path.name for path in pair.references] == ["01_tree.png", "02_boat.png"]


def test_what_is_not_comparable_is_not_asked_about(tree: StudyTree) -> None:
    drawn(tree)
    put(tree, MIST, ANNA, 0.36, unpaired=["lacks '01'"])
    put_samples(tree, MIST, BORIS, adapter="0" * 64)

    found = {(pair.artist, pair.condition, pair.place) for pair in pairs_in(tree)}

    assert not any(artist == str(ANNA) and condition == "mist" for artist, condition, _ in found)
    assert (str(BORIS), "mist", f"{PROMPT}, seed 0") not in found
    assert (str(BORIS), "mist", f"{BOAT}, seed 0") in found


def test_conditions_get_equal_numbers_in_an_order_of_chance(tree: StudyTree) -> None:
    pairs = pairs_in(drawn(tree))

    chosen = choose_pairs(pairs, 8, seed=1)

    assert sorted(pair.condition for pair in chosen) == ["mist"] * 4 + ["mist + noisy_upscaling"] * 4
    assert choose_pairs(pairs, 8, seed=1) == chosen
    assert choose_pairs(pairs, 8, seed=2) != chosen
    assert sorted(map(repr, choose_pairs(pairs, 100, seed=1))) == sorted(map(repr, pairs))


def test_the_pack_holds_no_names_and_the_key_tells_the_sides(tree: StudyTree, tmp_path: Path) -> None:
    pairs = choose_pairs(pairs_in(drawn(tree)), 100, seed=3)
    folder = tmp_path / "new" / "rating"

    write_rating_pack(folder, pairs, seed=3)

    assert sorted(path.name for path in folder.iterdir()) == [KEY, PACK]
    page = (folder / PACK / "index.html").read_text("utf-8")
    for word in ("mist", "noisy", "Anna", "Berg", "baroque", "tree", "boat", "none__none", "original art"):
        assert word not in page
    for name in re.findall(r'"(pictures/[^"]+)"', page):
        assert (folder / PACK / name).is_file()
    key = read_key(folder)
    assert [row["artist"] for row in key] == [pair.artist for pair in pairs]
    colours = {"mist": (120, 80, 90), "mist + noisy_upscaling": (180, 80, 90)}
    for row in key:
        pictures = folder / PACK / "pictures"
        assert {row["original"], row["other"]} == {"left", "right"}
        assert colour_of(pictures / f"pair-{row['pair']}-{row['original']}.png") == (60, 80, 90)
        assert colour_of(pictures / f"pair-{row['pair']}-{row['other']}.png") == colours[row["condition"]]
    assert sum(row["other"] == "left" for row in key) == len(key) // 2


def test_a_pack_is_not_written_over(tree: StudyTree, tmp_path: Path) -> None:
    pairs = pairs_in(drawn(tree))
    write_rating_pack(tmp_path / "rating", pairs, seed=0)
    before = (tmp_path / "rating" / KEY).read_bytes()

    with pytest.raises(UsageError, match="is there already"):
        write_rating_pack(tmp_path / "rating", pairs, seed=1)
    assert (tmp_path / "rating" / KEY).read_bytes() == before


def test_a_damaged_sample_leaves_no_pack(tree: StudyTree, tmp_path: Path) -> None:
    pairs = pairs_in(drawn(tree))
    content = pairs[0].other.read_bytes()
    pairs[0].other.write_bytes(content[: len(content) // 2])

    with pytest.raises(BatchFault, match=re.escape(str(pairs[0].other))):
        write_rating_pack(tmp_path / "out" / "rating", pairs, seed=0)
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_to_compare_is_refused(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)

    with pytest.raises(UsageError, match="mimicry samples"):
        write_rating_pack(tmp_path / "rating", pairs_in(tree), seed=0)
    assert not (tmp_path / "rating").exists()


def write_key(folder: Path) -> Path:
    rows = [
        KeyRow(
            pack="p1",
            pair=str(number),
            artist=artist,
            condition="mist",
            prompt_and_seed=PROMPT,
            original=own,
            other=other,
        )
        for number, (artist, own, other) in enumerate(
            [("a", "left", "right"), ("a", "right", "left"), ("b", "left", "right")], start=1
        )
    ]
    (folder / KEY).write_text(key_text(rows), "utf-8")
    return folder / KEY


def write_answers(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["pack,rater,pair,quality,style", *lines]) + "\n", "utf-8")
    return path


def test_answers_are_scored_by_the_key(tmp_path: Path) -> None:
    key = write_key(tmp_path)
    one = write_answers(tmp_path / "1.csv", "p1,x,1,right,left", "p1,x,2,right,left", "p1,x,3,left,left")
    other = write_answers(tmp_path / "2.csv", "p1,y,1,right,", 'p1,"y",3,left,right')

    scores = {score.question: score for score in read_scores(key, [one, other])}

    quality, style = scores["quality"], scores["style"]
    assert (quality.answers, quality.raters, quality.preferred) == (5, 2, 2)
    assert (style.answers, style.raters, style.preferred) == (4, 2, 2)
    # Artist a: 2 of 3; artist b: none of 2.
    assert quality.by_artist.mean == pytest.approx((2 / 3 + 0) / 2)
    # Two artists are too few for an interval of shares.
    assert [line.split()[2:] for line in score_table([quality]).splitlines()[1:2]] == [["5", "2", "40%"]]


def test_a_rater_who_answers_again_counts_once(tmp_path: Path) -> None:
    key = write_key(tmp_path)
    first = write_answers(tmp_path / "1.csv", "p1,x,1,right,left")
    again = write_answers(tmp_path / "2.csv", "p1,x,1,left,left")

    (quality, _) = read_scores(key, [first, again])

    assert (quality.answers, quality.preferred) == (1, 0)


def test_answers_that_are_not_of_this_pack_are_refused(tmp_path: Path) -> None:
    key = write_key(tmp_path)
    wrong = write_answers(tmp_path / "1.csv", "p2,x,1,right,left", "p1,x,9,right,left", "p1,x,1,up,left")
    table = tmp_path / "2.csv"
    table.write_text("name,age\nx,3\n")

    with pytest.raises(UsageError) as refused:
        read_scores(key, [wrong])
    assert len(refused.value.problems) == 3
    assert "'up'" in refused.value.problems[2]
    for path, word in ((table, "lacks the columns"), (tmp_path / "none.csv", "cannot be read")):
        with pytest.raises(UsageError, match=word):
            read_scores(key, [path])
    with pytest.raises(UsageError, match="nothing was answered"):
        read_scores(key, [write_answers(tmp_path / "3.csv")])


def test_the_command_writes_a_pack_and_scores_answers(
    tree: StudyTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(tree)
    folder = tmp_path / "rating"
    words = [f"--data-root={tree.data_root}", f"--rating-pack={folder}", "--rating-pairs=4"]

    assert run_command(report, [*words, f"--output={tmp_path / 'report'}"]) == 0
    assert "4 of 16 pairs" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()
    lines = [f"{row['pack']},me,{row['pair']},{row['other']},{row['original']}" for row in read_key(folder)]
    answers = write_answers(tmp_path / "answers.csv", *lines)

    assert run_command(report, [*words, f"--rating-answers={answers}"]) == 0
    said = capsys.readouterr().out
    assert re.findall(r"(quality|style) +2 +1 +(100|0)%", said) == [("quality", "100"), ("style", "0")] * 2
    assert run_command(report, [f"--rating-answers={answers}"]) == 2
    assert "--rating-pack" in capsys.readouterr().err


@pytest.mark.parametrize("condition", [ORIGINAL, COUNTERED])
def test_the_original_alone_makes_no_pair(tree: StudyTree, condition: object) -> None:
    put_all(tree)
    put_samples(tree, ORIGINAL if condition == ORIGINAL else COUNTERED)

    assert pairs_in(tree) == []
