"""Grids: the same painting, and the same prompt and seed, in all columns; words where there is no picture."""

from mimicry.report.grids import Cell, Grid, GridMaker, Row
from mimicry.study.tree import StudyTree
from tests.report.made_up import PROMPT, content_of, put, put_all, put_samples
from tests.small_study import ANNA, BORIS, COUNTERED, MIST, ORIGINAL

BOAT = "a painting of a boat in the style of sks"


def grid_of(tree: StudyTree, paintings: int = 1, samples: int = 4) -> Grid:
    group = content_of(tree).main.group
    return GridMaker(tree, group, paintings=paintings, samples=samples).grid(ANNA)


def of_kind(grid: Grid, kind: str) -> list[Row]:
    return [row for row in grid.rows if row.kind == kind]


def files(row: Row) -> list[str | None]:
    return [None if cell.shot is None else cell.shot.file.name for cell in row.cells]


def test_a_painting_stands_beside_what_was_made_of_it(tree: StudyTree) -> None:
    put_all(tree)
    folder = tree.protected_art / "mist" / str(ANNA)
    for path in folder.iterdir():
        path.rename(folder / f"50_noise_{path.name}")

    grid = grid_of(tree, paintings=2)

    assert [column.title for column in grid.columns] == [
        "base model",
        "original",
        "mist",
        "mist + noisy_upscaling",
    ]
    first, second = of_kind(grid, "painting")
    assert files(first) == [None, "01_tree.png", "50_noise_01_tree.png", "01_tree.png"]
    assert second.title == "02_boat.png"
    difference = of_kind(grid, "difference")[0]
    shot = difference.cells[2].shot
    assert shot is not None and shot.original is not None
    assert (shot.file.name, shot.original.name) == ("50_noise_01_tree.png", "01_tree.png")
    assert (difference.cells[0], difference.cells[1]) == (Cell(), Cell(caption=""))


def test_a_painting_that_a_set_lacks_is_missing(tree: StudyTree) -> None:
    put_all(tree)
    (tree.protected_art / "mist" / str(ANNA) / "01_tree.png").unlink()

    painting, _ = grid_of(tree).rows

    assert painting.cells[2] == Cell(word="missing")


def test_samples_of_a_row_have_one_prompt_and_one_seed(tree: StudyTree) -> None:
    put_all(tree)
    put_samples(tree, None, prompts=(PROMPT,), seeds=(0, 1))
    for condition in (ORIGINAL, MIST):
        put_samples(tree, condition, prompts=(PROMPT, BOAT), seeds=(0, 1))
    put_samples(tree, MIST, prompts=("of mist alone",))

    rows = of_kind(grid_of(tree, samples=5), "sample")

    assert [row.title for row in rows] == [
        f"{PROMPT}, seed 0",
        f"{BOAT}, seed 0",
        f"{PROMPT}, seed 1",
        f"{BOAT}, seed 1",
        "of mist alone, seed 0",
    ]
    name = f"{PROMPT.replace(' ', '_')}_0.png"
    assert files(rows[0]) == [name, name, name, None]
    assert rows[0].cells[3].word == "not drawn"
    assert rows[1].cells[0].word == "not drawn"
    for word in ("mist", PROMPT, "seed 0", "8 steps", "guidance 3.0", "recipe ", "trained with seed 42"):
        assert word in rows[0].cells[2].caption
    assert len(of_kind(grid_of(tree, samples=2), "sample")) == 2


def test_a_sample_of_a_former_adapter_is_marked(tree: StudyTree) -> None:
    put_all(tree)
    put_samples(tree, ORIGINAL)
    put_samples(tree, MIST, adapter="0" * 64)

    (row,) = of_kind(grid_of(tree), "sample")

    assert row.cells[1].marks == ()
    assert row.cells[2].marks == ("stale: drawn with another adapter than is there now",)


def test_a_sample_that_was_drawn_otherwise_is_marked(tree: StudyTree) -> None:
    put_all(tree)
    put_samples(tree, None)
    put_samples(tree, ORIGINAL)
    put_samples(tree, MIST, steps=28)

    (row,) = of_kind(grid_of(tree), "sample")

    assert row.cells[2].marks == ("drawn otherwise: steps 28 where most have 8",)


def test_a_cell_without_an_adapter_says_so(tree: StudyTree) -> None:
    for artist in (ANNA, BORIS):
        put(tree, ORIGINAL, artist, 0.3)
        put(tree, COUNTERED, artist, 0.3, unpaired=["lacks '01'"])
    put_samples(tree, ORIGINAL)

    grid = grid_of(tree)

    (row,) = of_kind(grid, "sample")
    assert [cell.word for cell in row.cells] == ["not drawn", "", "waiting", "not drawn"]
    assert [column.marks for column in grid.columns] == [(), (), ("waiting",), ("unpaired: lacks '01'",)]


def test_files_of_others_among_samples_are_left_out(tree: StudyTree) -> None:
    put_all(tree)
    (made,) = put_samples(tree, MIST)
    (made.parent / "other.png").write_bytes(b"nothing")

    assert len(of_kind(grid_of(tree), "sample")) == 1
