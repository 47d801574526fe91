"""The status that a command line asks for."""

import sys
from collections.abc import Mapping
from typing import Any

from mimicry.study import StudyTree
from mimicry.study.cells import CellImages
from mimicry.study.tree import ALL
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.execution.engines import queued_jobs
from mimicry.tuning.options import selection_of
from mimicry.tuning.options.series import planned_variants
from mimicry.tuning.options.study_file import StudyFile
from mimicry.tuning.planning import AdapterFilter
from mimicry.tuning.reports.status import StudyStatus, choose_cells, study_status, with_jobs
from mimicry.tuning.stacks import Stack


def read_status(parameters: Mapping[str, Any], study_file: StudyFile) -> StudyStatus:
    """Return the status of the cells that a command with the options of tree, conditions and artists means.

    Args:
        study_file: what the study is to have; without a file, what has images, adapters or bookmarks.

    Raises:
        UsageError: names that match nothing.
    """
    tree, stack = StudyTree(parameters["data_root"]), Stack.find(parameters["stack"])
    images, bookmarks = CellImages(tree), open_tracker(tree).bookmarks()
    planned = planned_variants(study_file)
    meant = choose_cells(
        images,
        bookmarks,
        series=AdapterFilter.of(parameters).series(tree, stack.name, planned),
        protections=parameters["protections"] or study_file.study.get("protections", (ALL,)),
        countermeasures=parameters["countermeasures"] or study_file.study.get("countermeasures", (ALL,)),
        selection=selection_of(parameters),
    )
    status = study_status(images, stack.traits.adapter_format, meant, bookmarks)
    jobs, faults = queued_jobs(tree)
    for fault in faults:
        print(f"warning: jobs of the cluster are left out: {fault}", file=sys.stderr)
    return with_jobs(status, jobs)
