"""What the Hub is asked before anything is trained: may we read the base model, and will uploads succeed?"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimicry.tuning.hub.child import retry, run_child
from mimicry.tuning.hub.names import token_problems
from mimicry.tuning.hub.upload import MADE_FOR, Upload

WAITS = (1.0, 2.0)
_SILENCE_SECONDS = 120.0


def hub_problems(
    jobs: Sequence[tuple[Upload, Path]], *, waits: Sequence[float] = WAITS, python: str = sys.executable
) -> list[str]:
    """Ask the Hub what would keep adapters from being uploaded.

    Args:
        jobs: what is to be uploaded, each with the folder of images that it is trained on.
    """
    if problems := token_problems():
        return problems
    request: dict[str, Any] = {
        "namespace": jobs[0][0].namespace,
        "jobs": [
            {"repository": job.repository, "input_dir": str(input_dir), MADE_FOR: job.made_for}
            for job, input_dir in jobs
        ],
    }
    reply = run_child(
        "mimicry.tuning.hub.client",
        request,
        silence_seconds=_SILENCE_SECONDS,
        waits=waits,
        python=python,
    )
    if reply.problem is None:
        found: list[str] = reply.result
        return found
    return [
        f"adapters are to be uploaded, and {reply.problem}; or train now with --no-push-to-hub, and upload "
        f"later with mimicry upload"
    ]


def hub_is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids requests to the Hub."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return HF_HUB_OFFLINE


def read_access_error(name: str) -> Exception | None:
    """Return the error of the Hub when the token may not read the model `name`."""
    from huggingface_hub import HfApi

    try:
        retry(lambda: HfApi().auth_check(name), WAITS, lambda _: None)
    except Exception as error:  # the client does not wrap the errors of its HTTP library
        return error
    return None
