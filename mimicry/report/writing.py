"""Writes a report's folder: tables and JSON from the same rows, and the page last."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mimicry
from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import write_bytes, write_json
from mimicry.common.text import printable
from mimicry.report.columns import (
    ADAPTER_COLUMNS,
    CONDITION_COLUMNS,
    EFFECT_COLUMNS,
    Column,
    Row,
    adapter_lines,
    condition_lines,
    effect_lines,
)
from mimicry.report.content import Content
from mimicry.report.effects import ConditionEffect, GroupEffects
from mimicry.report.grids import GridMaker
from mimicry.report.page import page
from mimicry.report.pictures import PictureFolder
from mimicry.study import EvaluatedOn
from mimicry.tuning.status.next_command import REPORT_JSON


def records(columns: Sequence[Column[Row]], rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows as objects for JSON."""
    return [{column.name: column.value(row) for column in columns} for row in rows]


def csv_text(columns: Sequence[Column[Row]], rows: Iterable[Row]) -> str:
    """Return the rows as CSV with a header, in UTF-8; numbers have all their digits."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(column.name for column in columns)
    for row in rows:
        values = (column.value(row) for column in columns)
        writer.writerow("" if value is None else _cell(value) for value in values)
    return file.getvalue()


def _cell(value: Any) -> str:
    return printable(value) if isinstance(value, str) else str(value)


_TEX = {
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX_HEADER = (
    "Protection & Countermeasure & Artists & Effect & 95\\% interval & Effect / noise & $p$ (Holm) & Undone"
)


def tex_table(group: GroupEffects) -> str:
    """Return the effects of a group as a LaTeX table, in thousandths of the evaluation loss."""
    lines = [
        "% Effects on the evaluation loss, in thousandths. Needs \\usepackage{booktabs}.",
        *(f"% {printable(word)}" for word in _tex_notes(group)),
        "\\begin{tabular}{llrrcrrr}",
        "\\toprule",
        f"{_TEX_HEADER} \\\\",
        "\\midrule",
        *(f"{' & '.join(_tex_row(found))} \\\\" for found in group.conditions),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _tex_notes(group: GroupEffects) -> list[str]:
    notes = [f"Series: {group.group.name}. Interval: bootstrap over artists, Student's t below 5 artists."]
    if group.noise is None:
        notes.append("One seed: the noise floor is not known.")
    if any(EvaluatedOn.IN_SAMPLE in effect.notes for effect in group.effects):
        notes.append("In-sample: the evaluation is on paintings that none__none was trained on.")
    return notes


def _tex_row(found: ConditionEffect) -> list[str]:
    summary = found.summary
    names = [_tex(name) for name in (found.condition.protection, found.condition.countermeasure)]
    if summary is None:
        return [*names, "0", *["--"] * 5]
    interval = summary.interval
    return [
        *names,
        str(summary.count),
        f"${_thousandths(summary.mean)}$",
        f"[${_thousandths(interval.low)}$, ${_thousandths(interval.high)}$]" if interval else "--",
        "--" if found.over_noise is None else f"${found.over_noise:.1f}$",
        "--" if found.holm is None else f"${found.holm:.3f}$" if found.holm >= 0.001 else "$<0.001$",
        "--" if found.undone is None else f"${found.undone * 100:.0f}\\%$",
    ]


def _thousandths(value: float) -> str:
    return f"{value * 1000:+.2f}"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in printable(text))


ADAPTERS_CSV, EFFECTS_CSV, CONDITIONS_CSV = "adapters.csv", "effects.csv", "conditions.csv"
TABLE_TEX, INDEX = "table.tex", "index.html"


def refuse_foreign_folder(option: str, folder: Path, mark: str) -> None:
    """Refuse to write into a folder that holds anything but what an earlier call put there.

    Args:
        mark: the name of a file that each of our folders has.

    Raises:
        UsageError: it is a file, or a folder with files of others.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option} {folder} is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise UsageError(
            f"{option} {folder} has files and no {mark}, so it was not made by this command; nothing was "
            f"written. Name a new folder, for example {folder / 'report'}"
        )


def write_tables(folder: Path, content: Content) -> None:
    """Write the CSV files, the LaTeX table and report.json.

    Raises:
        BatchFault: a file cannot be written.
    """
    texts = {
        ADAPTERS_CSV: csv_text(ADAPTER_COLUMNS, adapter_lines(content.groups)),
        EFFECTS_CSV: csv_text(EFFECT_COLUMNS, effect_lines(content.groups)),
        CONDITIONS_CSV: csv_text(CONDITION_COLUMNS, condition_lines(content.groups)),
        TABLE_TEX: tex_table(content.main),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # First, so that the next call knows the folder for its own even if this one stops here.
        write_json(folder / REPORT_JSON, report_json(content))
        for name, text in texts.items():
            write_bytes(folder / name, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise BatchFault(f"--output {folder} cannot be written: {error.strerror}") from error


def write_page(folder: Path, content: Content, *, title: str, paintings: int, samples: int) -> None:
    """Write the pictures and then the page that shows them.

    Args:
        paintings: how many of each artist are shown.
        samples: how many prompts and seeds are shown of each artist's samples.

    Raises:
        BatchFault: a file cannot be written.
    """
    group = content.main.group
    maker = GridMaker(content.tree, group, paintings=paintings, samples=samples)
    grids = [maker.grid(artist) for artist in group.artists]
    copies = PictureFolder(folder, content.tree.data_root).copies(
        shot for grid in grids for shot in grid.shots
    )
    text = page(content, grids, copies, title=title)
    try:
        write_bytes(folder / INDEX, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise BatchFault(f"--output {folder} cannot be written: {error.strerror}") from error


def report_json(content: Content) -> dict[str, Any]:
    """Return everything that the tables hold, for programs."""
    return {
        "schema": 1,
        "mimicry": mimicry.__version__,
        "made_at": content.made_at,
        "stack": content.stack,
        "groups": [_group_json(found) for found in content.groups],
        "conditions": records(CONDITION_COLUMNS, condition_lines(content.groups)),
        "effects": records(EFFECT_COLUMNS, effect_lines(content.groups)),
        "data_root": str(content.tree.data_root),
        "cells": [cell.to_json() for cell in content.status.cells],
        "adapters": records(ADAPTER_COLUMNS, adapter_lines(content.groups)),
    }


def _group_json(found: GroupEffects) -> dict[str, Any]:
    group = found.group
    return {
        "series": [{"name": one.name, "seed": one.seed} for one in group.series],
        "recipe": None if group.usual is None else group.usual.recipe,
        "noise_floor": found.noise and asdict(found.noise),
        "loss_noise": found.loss_noise and asdict(found.loss_noise),
    }
