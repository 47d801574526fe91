"""This step's bookmarks in the progress tracker: what stands in them, and how they are made from adapters."""

from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.study.tracker import Bookmarks, BookmarkStatus, ProgressTracker
from mimicry.study.tree import Condition, StudyTree, folders_in
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS, read_training_run
from mimicry.tuning.planning.plan import Request

STEP = "step_3_fine_tune_sd35"


def open_tracker(tree: StudyTree) -> ProgressTracker:
    """Return the study's tracker, for this step."""
    return ProgressTracker(
        tree.tracker, step=STEP, data_root=tree.data_root, rebuild=lambda: rebuilt_bookmarks(tree)
    )


def log_path(tree: StudyTree, output_dir: Path) -> str:
    """Return where an artist's log is, as the tracker names it: relative to the data root, which may move."""
    return (output_dir / TRAIN_LOG).relative_to(tree.data_root).as_posix()


def complete_bookmark(tree: StudyTree, output_dir: Path) -> dict[str, Any]:
    """Return the fields of the bookmark for the complete adapter in `output_dir`."""
    try:
        run = read_training_run(output_dir) or {}
    except AdapterBroken:
        run = {}
    images = run.get("images")
    return {
        "status": BookmarkStatus.COMPLETE,
        "started_at": run.get("started_at"),
        "seconds": run.get("seconds"),
        "images": len(images) if isinstance(images, list) else None,
        "steps": run.get("steps"),
        "loss": run.get("mean_loss"),
        "eval_loss": run.get("eval_loss"),
        "other_numerics": run.get("other_numerics") or None,
        "resumed_from": run.get("resumed_from"),
        "hub": run.get("hub"),
        "log": log_path(tree, output_dir) if (output_dir / TRAIN_LOG).exists() else None,
        "error": None,
        "note": None,
    }


def rebuilt_bookmarks(tree: StudyTree) -> Bookmarks:
    """Return the bookmarks of every adapter on disk, for a tracker that was lost."""
    found: Bookmarks = {}
    lora = tree.stack_outputs("")
    for stack in folders_in(lora):
        for name in folders_in(tree.stack_outputs(stack)):
            protection, separator, countermeasure = name.partition("__")
            if not separator:
                continue
            condition = Condition(protection, countermeasure)
            request = Request(tree=tree, stack=stack, condition=condition)
            for artist in tree.artists(tree.stack_outputs(stack) / name):
                output_dir = tree.output_dir(stack, condition, artist)
                if (output_dir / WEIGHTS).exists():
                    fields = complete_bookmark(tree, output_dir)
                    found[request.key(artist)] = {k: v for k, v in fields.items() if v is not None}
    return found
