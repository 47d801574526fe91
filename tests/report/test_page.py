"""The page as text, and the program that writes it. What a browser makes of it: test_browser.py."""

import re
from pathlib import Path

import pytest

from mimicry.common.programs import run_command
from mimicry.report.make_report import report
from mimicry.study.tree import Artist, Condition, StudyTree
from tests.report.made_up import eval_loss, put, put_all, put_samples
from tests.small_study import ANNA, BORIS, COUNTERED, MIST, ORIGINAL, listing, write_images, write_study


def page_of(tree: StudyTree, output: Path, *words: str) -> str:
    assert run_command(report, [f"--data-root={tree.data_root}", f"--output={output}", *words]) == 0
    return (output / "index.html").read_text("utf-8")


def text_of(page: str) -> str:
    """Return the words of a page, without tags."""
    body = page[page.index("<body>") : page.index("<script>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_answers_come_first(tree: StudyTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_all(tree)
    before = listing(tree.data_root)

    page = page_of(tree, tmp_path / "report", "--title", "Of Anna & others")

    assert capsys.readouterr().out == f"{tmp_path / 'report' / 'index.html'}\n"
    assert listing(tree.data_root) == before
    text = text_of(page)
    assert "<title>Of Anna &amp; others</title>" in page
    places = [page.index(f'<section id="{name}"') for name in ("answers", "trust", "artists", "pictures")]
    assert places == sorted(places)
    assert "makes learning harder" in text
    assert "takes protection away" in text
    assert "there is one seed" in text
    assert "On 4 paintings of each artist: 12 held-out." in text


def test_one_artist_says_nothing_of_others(tree: StudyTree, tmp_path: Path) -> None:
    for condition, end in ((ORIGINAL, 0.3), (MIST, 0.36)):
        put(tree, condition, ANNA, end)

    text = text_of(page_of(tree, tmp_path / "report", "--artist", "Anna_Berg"))

    assert "One artist says nothing about others" in text
    assert "no interval, no test" in text


def test_a_study_of_the_original_alone_has_a_page(tree: StudyTree, tmp_path: Path) -> None:
    put(tree, ORIGINAL, ANNA, 0.3)

    text = text_of(page_of(tree, tmp_path / "report"))

    assert "No artist can be compared: waiting" in text


def test_an_attack_that_learns_nothing_is_said(tree: StudyTree, tmp_path: Path) -> None:
    put(tree, ORIGINAL, ANNA, 0.6)

    assert "there is nothing to protect" in text_of(page_of(tree, tmp_path / "report"))


def test_what_is_wrong_with_a_cell_stands_in_it(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    put(tree, MIST, ANNA, 0.36, unpaired=["lacks '01'"])
    put(tree, MIST, BORIS, 0.36, options={"rank": 8})
    for condition, end in ((ORIGINAL, 0.3), (COUNTERED, 0.36)):
        put(tree, condition, ANNA, end, eval_loss=eval_loss(end, "in-sample"))

    page = page_of(tree, tmp_path / "report")

    rows = {
        re.search(r'data-artist="([^"]+)"', row)[1]: text_of(f"<body>{row}<script>")  # type: ignore[index]
        for row in re.findall(r"<tr data-artist.*?</tr>", page, re.DOTALL)
    }
    assert "unpaired" in rows[str(ANNA)]
    assert "in-sample" in rows[str(ANNA)]
    assert "other recipe" in rows[str(BORIS)]
    assert "In-sample means" in text_of(page)


def test_names_from_folders_and_records_are_text(tmp_path: Path) -> None:
    hostile = Artist("a<b", 'x"y', "<script>alert(1)</script>".replace("/", "\u2215"))
    tree = write_study(tmp_path / "study", artists=[hostile, ANNA])
    write_images(tree.images_of(tree.protected_art / "<img src=x>", hostile), salt="more")
    for artist in (hostile, ANNA):
        put(tree, ORIGINAL, artist, 0.3)
        put(tree, MIST, artist, 0.36, unpaired=["<b>bold</b> \x1b[31m"])
    put(tree, Condition("<img src=x>"), hostile, 0.4)
    put_samples(tree, MIST, hostile, prompts=('"><script>alert(2)',))

    page = page_of(tree, tmp_path / "report")

    assert page.count("<script>") == 1
    assert "<img src=x>" not in page
    assert "<b>bold" not in page
    assert "\x1b" not in page


def test_the_page_asks_nothing_of_a_network(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    put_samples(tree, MIST)

    page = page_of(tree, tmp_path / "report")

    sources = re.findall(r'(?:src|href|data-large)="([^"#]+)"', page)
    assert len(sources) > 10
    assert [source for source in sources if not (tmp_path / "report" / source).is_file()] == []
    assert "url(" not in page
    assert "http" not in page


def test_pictures_may_be_left_out(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    put_samples(tree, MIST)

    page = page_of(tree, tmp_path / "report", "--paintings", "0", "--samples", "0")

    assert 'class="shot"' not in page
    assert "No paintings and no samples." in page


def test_a_picture_that_cannot_be_read_leaves_a_word(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    (tree.protected_art / "mist" / str(ANNA) / "01_tree.png").write_bytes(b"nothing")

    assert "cannot be read" in text_of(page_of(tree, tmp_path / "report"))


def test_wrong_words_are_refused_and_nothing_is_written(
    tree: StudyTree, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_all(tree)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("")

    for words, said in (
        (["--output", str(foreign)], "--output"),
        (["--output", str(tmp_path / "new"), "--protection", "mst"], "mist"),
        (["--output", str(tmp_path / "new"), "--artist", "Ana"], "Anna_Berg"),
        (["--output", str(tmp_path / "new"), "--variant", "rank-8"], "rank-8"),
    ):
        assert run_command(report, [f"--data-root={tree.data_root}", *words]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in foreign.iterdir()) == ["chapter.tex"]
    assert not (tmp_path / "new").exists()
