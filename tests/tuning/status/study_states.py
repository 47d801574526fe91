"""Reading the status of a small study, and bringing its adapters into every state."""

import json
from pathlib import Path
from typing import Any

from mimicry.study.cells import CellImages
from mimicry.study.matrix import CellFilter, Matrix, Selection
from mimicry.study.tree import Artist, Condition, State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.checkpoint_facts import ADAPTER, PARTS, SCHEMA, STATE
from mimicry.tuning.adapters.inspect import AdapterStatus, Inspector
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.status.study_status import StudyStatus, look_at
from tests.small_study import ANNA, ORIGINAL, asked_for, output_dir, put_adapter

PLAIN = "hf_diffusers"


def status_of(
    tree: StudyTree, *, series: tuple[str, ...] = (PLAIN,), full: bool = False, **chosen: Any
) -> StudyStatus:
    """Read the status of a study without a study.toml, as the programs do."""
    images, bookmarks = CellImages(tree), open_tracker(tree).bookmarks()
    inspector = Inspector(images, form=ADAPTER_FORMAT, bookmarks=bookmarks, full=full, anew=full)
    return look_at(inspector, Matrix.choose(images, bookmarks, series, CellFilter(**chosen)))


def parameters_of(tree: StudyTree, selection: Selection | None = None, **names: Any) -> dict[str, Any]:
    """Return the parameters of a command about the tree; names are protections, countermeasures, variants."""
    chosen = selection or Selection()
    return {
        "data_root": tree.data_root,
        "stack": names.get("stack", PLAIN),
        "protections": names.get("protections", ()),
        "countermeasures": names.get("countermeasures", ()),
        "study_variant": names.get("variants", ()),
        **vars(chosen),
    }


def cell_of(
    status: StudyStatus, condition: Condition = ORIGINAL, artist: Artist = ANNA, series: str = PLAIN
) -> AdapterStatus:
    (cell,) = (
        cell
        for cell in status.cells
        if (cell.adapter.series, cell.adapter.condition, cell.adapter.artist) == (series, condition, artist)
    )
    return cell


def read_cell(tree: StudyTree, condition: Condition = ORIGINAL, artist: Artist = ANNA) -> AdapterStatus:
    """Return a cell of the plain series as it is now."""
    return cell_of(status_of(tree), condition, artist)


def put_record(folder: Path, **fields: Any) -> Path:
    """Write the record of a training that left no adapter, with a log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training_run.json").write_text(json.dumps(fields))
    (folder / "train.log").write_text("it began\n")
    return folder


def put_checkpoint(folder: Path, step: int) -> Path:
    """Write a checkpoint of our own trainer, as far as a glance can tell."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in PARTS:
        (checkpoint / name).write_bytes(b"x")
    assert {ADAPTER, STATE} < {*PARTS}
    facts = {"schema": SCHEMA, "step": step, "sha256": dict.fromkeys(PARTS, "0" * 64)}
    facts["recipe"] = asked_for().recipe
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))
    return checkpoint


def put_bookmark(tree: StudyTree, condition: Condition, artist: Artist, **fields: Any) -> None:
    key = f"{PLAIN}/{condition.protection}/{condition.countermeasure}/{artist}"
    open_tracker(tree).record(key, **fields)


def put_all(tree: StudyTree, *conditions: Condition, artists: tuple[Artist, ...]) -> None:
    """Write a complete adapter for each condition and artist, with the path that its training had."""
    for condition in conditions:
        for artist in artists:
            path = str(output_dir(tree, condition, artist))
            put_adapter(tree, condition, artist, paths={"output_dir": path})


def states_of(status: StudyStatus) -> set[State]:
    return {cell.state for cell in status.cells}
