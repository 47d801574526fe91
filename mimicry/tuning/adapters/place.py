"""Whether an adapter lies where it was trained: a copied folder says one condition, its record another."""

from pathlib import Path

from mimicry.study import AdapterId
from mimicry.tuning.adapters.training_run import TrainingRun


def recorded_elsewhere(folder: Path, run: TrainingRun) -> str:
    """Say of which condition and artist the record is, if the adapter in `folder` should be another's.

    A study may be moved, and an adapter reused for a variant. It is empty for a record without a path.
    """
    path = (run.paths or {}).get("output_dir")
    recorded = AdapterId.parse(Path(path)) if isinstance(path, str) else None
    here = AdapterId.parse(folder)
    if recorded is None or here is None:
        return ""
    if (recorded.condition, recorded.artist) == (here.condition, here.artist):
        return ""
    return f"its record is of {recorded.condition}/{recorded.artist}"
