"""This step's bookmarks in the progress tracker: what stands in them, and how they are made from adapters."""

from collections.abc import Collection
from pathlib import Path

from mimicry.common.errors import MimicryError
from mimicry.study import AdapterId, State, StudyTree
from mimicry.study.cells import CellImages
from mimicry.study.matrix import CellFilter, Matrix
from mimicry.study.selection import Selection
from mimicry.study.tracker import Bookmarks, ProgressTracker
from mimicry.study.tree import ALL, series_name
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.adapters.bookmark import Bookmark
from mimicry.tuning.options.series import planned_variants
from mimicry.tuning.options.study_file import StudyFile

STEP = "step_3_fine_tune_sd35"
# Is the key of nothing, so that a step of which it is expected is not complete.
_UNKNOWN = ""


def open_tracker(tree: StudyTree) -> ProgressTracker:
    """Return the study's tracker, for this step."""
    return ProgressTracker(
        tree.tracker,
        step=STEP,
        data_root=tree.data_root,
        rebuild=lambda: rebuilt_bookmarks(tree),
        expected=lambda: _expected_keys(tree),
    )


def _expected_keys(tree: StudyTree) -> Collection[str]:
    """Return the keys of all cells that have images, of those that the study.toml in the tree names.

    Of each stack that has adapters, the plain series is meant, and the variants that have a folder or stand
    in the file.
    """
    # What a training has made is recorded, even if nothing can be said of the images just now.
    try:
        study_file = StudyFile.of(tree)
        planned = planned_variants(study_file)
        study = study_file.study
        chosen = CellFilter(
            protections=study.get("protections", (ALL,)),
            countermeasures=study.get("countermeasures", (ALL,)),
            selection=Selection(
                splits=study.get("splits", ()),
                styles=study.get("styles", ()),
                artists=study.get("artists", ()),
                pilot=study.get("pilot", False),
            ),
        )
        series = {
            series_name(stack, each): None
            for stack in tree.stacks()
            for each in (*planned, *tree.variants(stack))
        }
        images = CellImages(tree)
        return {cell.key for cell in Matrix.choose(images, {}, list(series), chosen).with_images(images)}
    except MimicryError:
        return (_UNKNOWN,)


def log_path(tree: StudyTree, folder: AdapterFolder) -> str:
    """Return where an artist's log is, as the tracker names it: relative to the data root, which may move."""
    return folder.log.relative_to(tree.data_root).as_posix()


def complete_bookmark(tree: StudyTree, folder: AdapterFolder) -> Bookmark:
    """Return the bookmark of the complete adapter in `folder`."""
    return Bookmark.complete(folder.readable_run, log=log_path(tree, folder) if folder.log.exists() else None)


def record_adapter(tree: StudyTree, output_dir: Path) -> None:
    """Record how the adapter in `output_dir` is, after a training that no plan has asked for.

    Raises:
        MimicryError: the tracker cannot be written.
    """
    adapter = AdapterId.parse(output_dir)
    assert adapter is not None  # it lies in the tree
    folder, tracker = AdapterFolder(tree.adapter_dir(adapter)), open_tracker(tree)
    run = folder.readable_run
    if folder.has_weights:
        tracker.record(adapter.key, **complete_bookmark(tree, folder).to_json())
    elif run.status in (State.FAILED, State.INTERRUPTED, State.BLOCKED):
        mark = Bookmark.ended(State(run.status), error=run.error, steps=run.steps, log=log_path(tree, folder))
        tracker.record(adapter.key, **mark.to_json())


def rebuilt_bookmarks(tree: StudyTree) -> Bookmarks:
    """Return the bookmarks of every adapter on disk, for a tracker that was lost."""
    found: Bookmarks = {}
    for adapter in tree.adapters():
        folder = AdapterFolder(tree.adapter_dir(adapter))
        if folder.has_weights:
            fields = complete_bookmark(tree, folder).to_json()
            found[adapter.key] = {name: value for name, value in fields.items() if value is not None}
    return found
