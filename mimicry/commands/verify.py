"""`mimicry verify`: check every adapter that is there, and the images, without training."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mimicry.common.processes import NOT_AS_ASKED
from mimicry.study import (
    Artist,
    BadImage,
    CellFilter,
    CellImages,
    Finding,
    ImageFolder,
    Matrix,
    State,
    StudyTree,
    bad_images,
    left_out,
    unusable,
)
from mimicry.tuning.options.click_options import (
    CALL,
    condition_filters,
    option,
    program,
    selection_options,
    tree_options,
)
from mimicry.tuning.options.study_defaults import study_file_of
from mimicry.tuning.planning.display import checking_bar
from mimicry.tuning.status.status_text import status_json
from mimicry.tuning.status.study_status import cell_filter, read_status
from mimicry.tuning.status.tables import verdict_table


@program("verify")
@tree_options
@condition_filters
@selection_options
@option("-v", "--verbose", topic=CALL, is_flag=True, help="List every image that cannot be used.")
@option("--json", "as_json", topic=CALL, is_flag=True, help="The state of each cell as JSON.")
@click.pass_context
def verify(context: click.Context, /, verbose: bool, as_json: bool, **parameters: Any) -> int:
    """Check every value of each adapter against its own record, its recipe against study.toml and the
    study's other adapters, and decode the images.

    Nothing that earlier calls remember is trusted, nothing is trained, and nothing in the study is written.
    What is found is known to the other commands until the files change. The exit code is 1 when an adapter is
    broken or an image cannot be trained on, and 3 when that is not so, but an adapter is stale or in use, or
    the study has several recipes.
    """
    study_file = study_file_of(context)
    status = read_status(parameters, study_file, full=True)
    folders = image_folders(status.tree, status.matrix, cell_filter(parameters, study_file))
    problems = image_problems(status.tree, folders)
    if as_json:
        described = {**status_json(status), "image_problems": [problem.text for problem in problems]}
        print(json.dumps(described, indent=2))
    else:
        print(verdict_table(status, problems))
        if verbose:
            print("".join(problem.full_list() for problem in problems), end="")
    if problems or status.with_state(State.BROKEN):
        return 1
    in_use = any(cell.holder is not None for cell in status.cells)
    return NOT_AS_ASKED if status.is_mixed or in_use or status.with_state(State.STALE) else 0


def image_folders(tree: StudyTree, matrix: Matrix, chosen: CellFilter) -> list[Path]:
    """Return the folders of images, of the conditions and artists that are meant, that are there."""
    images = CellImages(tree)
    sources = [images.source(condition) for condition in matrix.conditions]
    roots = [source.root for source in sources if source is not None]
    if chosen == CellFilter(selection=chosen.selection):
        # Samples whose protection is not known, too.
        roots += tree.image_roots()
    folders = [tree.images_of(root, artist) for root in dict.fromkeys(roots) for artist in matrix.artists]
    return [folder for folder in folders if folder.is_dir()]


def image_problems(tree: StudyTree, folders: Sequence[Path]) -> list[Finding]:
    """Decode the images in an artist's `folders`, and return what is wrong with them and their names.

    Images that are left out of all conditions already are not looked at.
    """
    stems = left_out(tree)
    images = [ImageFolder.read(folder).without(stems.get(_artist(folder), ())) for folder in folders]
    # That an artist has no images in a condition is for the plan to say.
    names = [folder.problem() for folder in images if folder.names or folder.fault]
    with checking_bar() as progress:
        bad = bad_images(images, progress, anew=True)
    by_folder: dict[Path, list[BadImage]] = defaultdict(list)
    for image in bad:
        by_folder[image.path.parent].append(image)
    unusable_sets = [
        unusable(folder, by_folder[folder.path]) for folder in images if folder.path in by_folder
    ]
    return [*(Finding(name) for name in names if name), *unusable_sets]


def _artist(folder: Path) -> str:
    return str(Artist(*folder.parts[-3:]))
