"""The tables of a report: CSV files for programs, a LaTeX table for the paper."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from mimicry.common.text import printable
from mimicry.report.columns import Column, Row
from mimicry.report.effects import ConditionEffect, GroupEffects
from mimicry.report.rows import IN_SAMPLE


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
    if any(IN_SAMPLE in effect.notes for effect in group.effects):
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
