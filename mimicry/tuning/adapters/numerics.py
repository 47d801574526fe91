"""Numerics: what may change the last bits of an adapter without being part of its recipe. No torch.

The adapters of one artist under several conditions are sisters. They are to differ in their images alone, so
what has trained one, the device and the versions of libraries, should have trained them all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimicry.study.tree import sister_folders
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.recipe import recipe_differences


def numerics_differences(former: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Say in words how two `numerics` blocks differ; what only one of them has is not a difference."""
    return [
        f"{name} {former[name]!r} -> {value!r}"
        for name, value in present.items()
        if name in former and former[name] != value
    ]


def sister_differences(
    output_dir: Path, recipe: Mapping[str, Any], numerics: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Return how the numerics of the sister adapters differ from `numerics`, by condition.

    Sisters lie beside `output_dir` in the study's tree, are complete, and have the same `recipe`. Conditions
    without a difference are left out.
    """
    found = {}
    for condition, path in sister_folders(output_dir).items():
        former = _numerics_of(AdapterFolder(path), recipe)
        differences = numerics_differences(former, numerics)
        if differences:
            found[condition] = differences
    return found


def describe_differences(differences: Mapping[str, list[str]]) -> str:
    """Return what `sister_differences` has found as one phrase; empty when it has found nothing."""
    words = [f"{name} ({', '.join(changed)})" for name, changed in differences.items()]
    return f"other numerics than {'; '.join(words)}" if words else ""


def _numerics_of(folder: AdapterFolder, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the numerics of a complete adapter of this recipe; empty for any other."""
    run = folder.readable_run
    alike = run.recipe is not None and not recipe_differences(run.recipe, recipe)
    return run.numerics or {} if folder.has_weights and alike else {}
