"""Uploading a complete adapter, and noting in its training_run.json where it went or what is still owed."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from mimicry.common.errors import UploadFailed
from mimicry.common.files import utc_now, write_json
from mimicry.common.tokens import scrub
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.hub.child import WAITS, run_child
from mimicry.tuning.hub.job import Uploaded, UploadJob
from mimicry.tuning.hub.token import token_problems

# The client says nothing while it sends a file, so silence is allowed for as long as a slow line takes.
_SLOWEST_BYTES_PER_SECOND = 50_000


def upload_and_record(job: UploadJob) -> Uploaded:
    """Upload the adapter of `job` and note the result under `hub` in its training_run.json.

    Raises:
        UploadFailed: it did not get there; the note says what is owed, and why.
    """
    try:
        uploaded = upload_adapter(job)
    except UploadFailed as error:
        _record(job, {"owed": job.repository, "error": str(error)})
        raise
    _record(job, asdict(uploaded) | {"uploaded_at": utc_now()})
    return uploaded


def upload_adapter(
    job: UploadJob,
    *,
    stall_seconds: float = 300,
    waits: Sequence[float] = WAITS,
    python: str = sys.executable,
) -> Uploaded:
    """Upload the final files of `job.folder` to a private repository, in one commit, and say where they are.

    Args:
        stall_seconds: how long the upload may be silent, beyond the time that sending the weights takes.
        waits: seconds before each retry of a request.

    Raises:
        UploadFailed: nothing was committed, as far as is known; the message does not hold the token.
    """
    if problems := token_problems():
        raise UploadFailed(*problems)
    weights = AdapterFolder(job.folder).weights
    weight_bytes = weights.stat().st_size if weights.is_file() else 0
    reply = run_child(
        "mimicry.tuning.hub.upload_child",
        asdict(job) | {"folder": str(job.folder)},
        silence_seconds=stall_seconds + weight_bytes / _SLOWEST_BYTES_PER_SECOND,
        waits=waits,
        python=python,
    )
    if reply.problem is None:
        return Uploaded(**reply.result)
    raise UploadFailed(
        scrub(
            f"{job.repository} was not uploaded: {reply.problem}; the adapter in {job.folder} is complete "
            "all the same: the next call of the same command uploads it, as mimicry upload does; "
            "--no-push-to-hub switches uploads off"
        )
    )


def _record(job: UploadJob, hub: dict[str, str]) -> None:
    folder = AdapterFolder(job.folder)
    if folder.run is not None:
        write_json(folder.record, {**folder.run.content, "hub": hub})
