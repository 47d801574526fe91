"""What can be known of uploads before anything is trained: the token, the names, the repositories there."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.tuning.hub.child import run_child
from mimicry.tuning.hub.identity import MADE_FOR, made_for
from mimicry.tuning.hub.upload import HUB_ID, MAX_NAME_LENGTH, UploadJob, token_problems

# As the Hub has it: letters, digits and _ - . inside, no two dashes or dots together.
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]*\w)?", re.ASCII)
_WAITS = (1.0, 2.0)
_SILENCE_SECONDS = 120.0


def name_problems(option: str, name: str) -> list[str]:
    """Return what makes `name`, which may be namespace/name, no name on the Hub."""
    parts = name.split("/")
    wrong = (
        "it takes NAME or NAMESPACE/NAME"
        if len(parts) > 2
        else f"its {len(parts[-1])} characters are too many; it takes {MAX_NAME_LENGTH} at most"
        if len(parts[-1]) > MAX_NAME_LENGTH
        else "it takes letters A to Z, digits, and inside also single - and ., without accents"
        if not all(_NAME.fullmatch(part) for part in parts) or name.endswith(".git")
        else ""
    )
    return [f"{option} {name!r} is no name on the Hub: {wrong}"] if wrong else []


def refuse_names(names: Mapping[str, str | None], base_model_id: str | None) -> None:
    """Refuse options that are no names on the Hub.

    Args:
        names: by option; None for one that was not given.

    Raises:
        UsageError: all that are wrong.
    """
    problems = [
        problem
        for option, name in names.items()
        if name is not None
        for problem in name_problems(option, name)
    ]
    if base_model_id is not None and not HUB_ID.fullmatch(base_model_id):
        problems.append(
            f"--base-model-id {base_model_id!r} is no model id of the Hub: it must be owner/name, "
            "as stabilityai/stable-diffusion-3.5-large"
        )
    if problems:
        raise UsageError(*problems)


def hub_problems(
    jobs: Sequence[tuple[UploadJob, Path]], *, waits: Sequence[float] = _WAITS, python: str = sys.executable
) -> list[str]:
    """Ask the Hub what would keep uploads from being taken.

    Args:
        jobs: what is to be uploaded, each with the folder of images that it is trained on.
    """
    if problems := token_problems():
        return problems
    words: dict[str, Any] = {
        "namespace": jobs[0][0].namespace,
        "jobs": [
            {"repository": job.repository, "input_dir": str(input_dir), MADE_FOR: place_of(job)}
            for job, input_dir in jobs
        ],
    }
    heard = run_child(
        "mimicry.tuning.hub.preflight_child",
        words,
        silence_seconds=_SILENCE_SECONDS,
        waits=waits,
        python=python,
    )
    if heard.problem is None:
        found: list[str] = heard.result
        return found
    return [
        f"adapters are to be uploaded, and {heard.problem}; or train now with --no-push-to-hub, and upload "
        f"later with apply_tuning --upload-only"
    ]


def place_of(job: UploadJob) -> dict[str, str | None]:
    """Return what the adapter of `job` is made for."""
    return made_for(job.protection, job.countermeasure, job.artist, job.split, job.style)
