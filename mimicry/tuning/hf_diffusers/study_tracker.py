"""The tracker of the study around an artist, for a training that the wrapper was asked for by hand."""

from collections.abc import Iterator
from contextlib import contextmanager

from mimicry.common.children import has_parent
from mimicry.common.errors import MimicryError, report
from mimicry.study import StudyTree
from mimicry.tuning.adapters.bookmark import record_adapter
from mimicry.tuning.hf_diffusers.artist_job import ArtistJob


@contextmanager
def tracker_told(job: ArtistJob) -> Iterator[None]:
    """Run the body, and tell the study's tracker how the adapter is then; apply_tuning does so itself."""
    tree = None if has_parent() else StudyTree.around(job.inputs.output_dir)
    try:
        yield
    finally:
        # A study that apply_tuning has not worked on has no tracker, and gets none.
        if tree is not None and tree.tracker.exists():
            try:
                record_adapter(tree, job.inputs.output_dir)
            except MimicryError as error:  # how the training ended comes first
                report(error)
