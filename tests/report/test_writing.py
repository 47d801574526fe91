"""The files of a report: the same rows in CSV, JSON and LaTeX."""

import csv
import json
from pathlib import Path

import pytest

from mimicry.common.errors import BatchFault, UsageError
from mimicry.report.columns import ADAPTER_COLUMNS, CONDITION_COLUMNS, EFFECT_COLUMNS
from mimicry.report.writing import (
    ADAPTERS_CSV,
    CONDITIONS_CSV,
    EFFECTS_CSV,
    TABLE_TEX,
    refuse_foreign_folder,
    tex_table,
    write_tables,
)
from mimicry.study.tree import StudyTree
from mimicry.tuning.status.next_command import REPORT_JSON
from tests.report.made_up import LOSSES, content_of, eval_loss, put, put_all
from tests.small_study import ANNA, MIST, ORIGINAL


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_files_hold_the_same_rows(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    put(tree, MIST, ANNA, 0.36, unpaired=["lacks '01'"], warnings=["one", "two, with a comma"])
    folder = tmp_path / "new" / "report"

    write_tables(folder, content_of(tree))

    content = json.loads((folder / REPORT_JSON).read_text("utf-8"))
    for name, columns, key in (
        (ADAPTERS_CSV, ADAPTER_COLUMNS, "adapters"),
        (EFFECTS_CSV, EFFECT_COLUMNS, "effects"),
        (CONDITIONS_CSV, CONDITION_COLUMNS, "conditions"),
    ):
        rows = read_csv(folder / name)
        assert list(rows[0]) == [column.name for column in columns]
        assert rows == [
            {name: "" if value is None else str(value) for name, value in row.items()} for row in content[key]
        ]
    (anna,) = (
        row
        for row in read_csv(folder / EFFECTS_CSV)
        if row["artist"] == "Anna_Berg" and row["comparable"] == "no"
    )
    assert anna["obstacles"] == "unpaired: lacks '01'"
    assert len(read_csv(folder / ADAPTERS_CSV)) == 3 * len(LOSSES)
    assert "\\toprule" in (folder / TABLE_TEX).read_text("utf-8")


def test_the_effects_of_one_artist_by_hand(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    write_tables(tmp_path / "report", content_of(tree))

    adapters = {
        (row["artist"], row["protection"], row["countermeasure"]): float(row["eval_loss_end"])
        for row in read_csv(tmp_path / "report" / ADAPTERS_CSV)
    }
    for row in read_csv(tmp_path / "report" / EFFECTS_CSV):
        own = adapters[row["artist"], row["protection"], row["countermeasure"]]
        assert float(row["effect"]) == own - adapters[row["artist"], "none", "none"]
        assert float(row["eval_loss_none"]) == pytest.approx(adapters[row["artist"], "none", "none"])


def test_latex_takes_any_name(tree: StudyTree) -> None:
    put_all(tree)
    (tree.protected_art / "mist").rename(tree.protected_art / "a&b_50%#~^\\{x}")

    text = tex_table(content_of(tree).main)

    assert r"a\&b\_50\%\#\textasciitilde{}\textasciicircum{}\textbackslash{}\{x\}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {7}


def test_latex_says_what_is_not_known(tree: StudyTree) -> None:
    for condition, end in ((ORIGINAL, 0.3), (MIST, 0.36)):
        put(tree, condition, ANNA, end, eval_loss=eval_loss(end, "in-sample"))

    text = tex_table(content_of(tree).main)

    assert "% One seed" in text
    assert "% In-sample" in text
    assert r"mist & none & 1 & $+60.00$ & -- & -- & -- & -- \\" in text


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    refuse_foreign_folder("--output", foreign, REPORT_JSON)
    (foreign / "thesis.txt").write_text("")

    for path in (tmp_path / "file", foreign):
        with pytest.raises(UsageError, match="--output"):
            refuse_foreign_folder("--output", path, REPORT_JSON)
    (foreign / REPORT_JSON).write_text("{}")
    refuse_foreign_folder("--output", foreign, REPORT_JSON)


def test_a_report_that_cannot_be_written_is_said(tree: StudyTree, tmp_path: Path) -> None:
    put_all(tree)
    (tmp_path / "file").write_text("")

    with pytest.raises(BatchFault, match="--output"):
        write_tables(tmp_path / "file" / "report", content_of(tree))
