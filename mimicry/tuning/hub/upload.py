"""Uploading a complete adapter, and asking before a training whether the Hub will take it.

training_run.json says where an adapter went, or what is still owed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import UploadFailed
from mimicry.common.files import utc_now, write_json
from mimicry.common.tokens import scrub
from mimicry.study.tree import AdapterId
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.hub.child import retry, run_child
from mimicry.tuning.hub.names import repository_name, token_problems

# The key of `Upload.made_for` in the copy of training_run.json that goes to the Hub.
MADE_FOR = "made_for"
# Seconds before each retry of a request: what the client waits where it retries by itself; and fewer before a
# training, where somebody waits for the answer.
UPLOAD_WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)
CHECK_WAITS = (1.0, 2.0)
_CHECK_SECONDS = 120.0
# The client says nothing while it sends a file, so silence is allowed for as long as a slow line takes.
_SLOWEST_BYTES_PER_SECOND = 50_000


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """What was typed: a `namespace` other than the user's own, and the Hub id of a base model in a folder."""

    namespace: str | None = None
    base_model_id: str | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "HubOptions":
        return cls(namespace=parameters["hub_namespace"], base_model_id=parameters["base_model_id"])

    def words(self) -> list[str]:
        options = {"--hub-namespace": self.namespace, "--base-model-id": self.base_model_id}
        return [f"{option}={value}" for option, value in options.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One complete adapter on its way to the Hub; see `HubOptions` too.

    `repository` is a name or namespace/name. `split` and `style` tell artists of one name apart.
    """

    folder: Path
    repository: str
    protection: str
    countermeasure: str
    artist: str
    split: str | None = None
    style: str | None = None
    namespace: str | None = None
    base_model_id: str | None = None

    @classmethod
    def from_adapter(
        cls, adapter: AdapterId, folder: Path, prefix: str, hub: HubOptions | None, name: str | None = None
    ) -> "Upload":
        """Return the upload of the adapter in `folder`; `name` is that of the repository, if it was typed."""
        hub = hub or HubOptions()
        return cls(
            folder=folder,
            repository=name or repository_name(prefix, adapter),
            protection=adapter.condition.protection,
            countermeasure=adapter.condition.countermeasure,
            artist=adapter.artist.name,
            split=adapter.artist.split,
            style=adapter.artist.style,
            namespace=hub.namespace,
            base_model_id=hub.base_model_id,
        )

    @property
    def made_for(self) -> dict[str, str | None]:
        """The place of the adapter in the study; split and style are None where they are unknown."""
        return {
            "protection": self.protection,
            "countermeasure": self.countermeasure,
            "split": self.split,
            "style": self.style,
            "artist": self.artist,
        }


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Where an adapter is now: the repository's id, its address, and the commit that holds the files."""

    repository_id: str
    url: str
    commit: str


def upload_and_record(job: Upload) -> Uploaded:
    """Upload the adapter and note it, or what is owed, in its training_run.json; raises UploadFailed."""
    try:
        uploaded = upload_adapter(job)
    except UploadFailed as error:
        _record(job, {"owed": job.repository, "error": str(error)})
        raise
    _record(job, asdict(uploaded) | {"uploaded_at": utc_now()})
    return uploaded


def upload_adapter(
    job: Upload,
    *,
    stall_seconds: float = 300,
    waits: Sequence[float] = UPLOAD_WAITS,
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
        "upload",
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


def _record(job: Upload, hub: dict[str, str]) -> None:
    folder = AdapterFolder(job.folder)
    if folder.run is not None:
        write_json(folder.record, {**folder.run.content, "hub": hub})


def hub_problems(
    jobs: Sequence[tuple[Upload, Path]], *, waits: Sequence[float] = CHECK_WAITS, python: str = sys.executable
) -> list[str]:
    """Ask the Hub what would keep `jobs`, each with the folder of its images, from being uploaded."""
    if problems := token_problems():
        return problems
    request: dict[str, Any] = {
        "namespace": jobs[0][0].namespace,
        "jobs": [
            {"repository": job.repository, "input_dir": str(input_dir), MADE_FOR: job.made_for}
            for job, input_dir in jobs
        ],
    }
    reply = run_child("check", request, silence_seconds=_CHECK_SECONDS, waits=waits, python=python)
    if reply.problem is None:
        return list(reply.result)
    return [
        f"adapters are to be uploaded, and {reply.problem}; or train now with --no-push-to-hub, and upload "
        f"later with mimicry upload"
    ]


def read_access_error(name: str) -> Exception | None:
    """Return the error of the Hub when the token may not read the model `name`."""
    from huggingface_hub import HfApi

    try:
        retry(lambda: HfApi().auth_check(name), CHECK_WAITS, lambda _: None)
    except Exception as error:  # the client does not wrap the errors of its HTTP library
        return error
    return None
