"""Numerics: what may change the last bits of an adapter without being part of its recipe. No torch.

The adapters of one artist under several conditions are sisters. They are to differ in their images alone, so
what has trained one, the device and the versions of libraries, should have trained them all.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.study.tree import folders_in, parse_output_dir
from mimicry.tuning.adapters.folder import WEIGHTS, read_training_run
from mimicry.tuning.adapters.recipe import recipe_differences


def numerics_differences(former: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Say in words in what two `numerics` blocks differ; what one of them does not tell is no difference."""
    return [
        f"{name} {former[name]!r} -> {value!r}"
        for name, value in present.items()
        if name in former and former[name] != value
    ]


def sister_differences(
    output_dir: Path, recipe: Mapping[str, Any], numerics: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Return in what the numerics of the sister adapters differ from `numerics`, by condition.

    Sisters lie beside `output_dir` in the study's tree, are complete, and have the same `recipe`; an adapter
    elsewhere has none. Conditions without a difference are left out.
    """
    if parse_output_dir(output_dir) is None:
        return {}
    condition, *artist = output_dir.absolute().parts[-4:]
    outputs = output_dir.absolute().parents[3]
    found = {}
    for name in folders_in(outputs):
        run = None if name == condition else _sister(outputs.joinpath(name, *artist), recipe)
        differences = [] if run is None else numerics_differences(run["numerics"], numerics)
        if differences:
            found[name] = differences
    return found


def told(differences: Mapping[str, list[str]]) -> str:
    """Return what `sister_differences` has found as one phrase; empty when it has found nothing."""
    words = [f"{name} ({', '.join(changed)})" for name, changed in differences.items()]
    return f"other numerics than {'; '.join(words)}" if words else ""


def _sister(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the training_run.json of a sister in `folder`; None where there is none."""
    if not (folder / WEIGHTS).exists():
        return None
    try:
        run = read_training_run(folder)
    except AdapterBroken:
        return None
    if run is None or not isinstance(run.get("numerics"), dict):
        return None
    recorded = run.get("recipe")
    alike = isinstance(recorded, dict) and not recipe_differences(recorded, recipe)
    return run if alike else None
