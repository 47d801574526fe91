"""Writes a report's folder: tables and JSON from the same rows, and the page last."""

from pathlib import Path
from typing import Any

import mimicry
from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import write_bytes, write_json
from mimicry.report.columns import (
    ADAPTER_COLUMNS,
    CONDITION_COLUMNS,
    EFFECT_COLUMNS,
    adapter_lines,
    condition_lines,
    effect_lines,
)
from mimicry.report.content import Content
from mimicry.report.effects import GroupEffects
from mimicry.report.grids import GridMaker
from mimicry.report.page import page
from mimicry.report.pictures import PictureFolder
from mimicry.report.statistics import Spread
from mimicry.report.tables import csv_text, records, tex_table
from mimicry.tuning.reports.next_command import REPORT_JSON

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
        "noise_floor": _spread_json(found.noise),
        "loss_noise": _spread_json(found.loss_noise),
    }


def _spread_json(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else {"deviation": spread.deviation, "freedom": spread.freedom}
