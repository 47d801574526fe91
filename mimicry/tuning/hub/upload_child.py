"""The child that uploads one adapter: `python -m mimicry.tuning.hub.client`, started by upload.py.

HF_TOKEN and HF_ENDPOINT come from the environment.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mimicry.common.errors import UploadFailed
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.hub.child import RetriesExhausted, answer, serve
from mimicry.tuning.hub.client import Connection, HubRepository
from mimicry.tuning.hub.files import HubFiles, hub_files
from mimicry.tuning.hub.upload import Upload


def upload(request: dict[str, Any]) -> dict[str, str]:
    """Upload the adapter of the UploadJob in `request`, and return where it is."""
    waits = request.pop("waits", ())
    job = Upload(**request | {"folder": Path(request["folder"])})
    answer(stage="reading the adapter")
    files = hub_files(job)
    connection = Connection.open(waits)
    repository = HubRepository(connection, _repository_id(connection, job))
    repository.create()
    repository.refuse_other(json.loads(files.texts[TRAINING_RUN]))
    commit = _send(repository, files)
    return {"repository_id": repository.id, "url": repository.url, "commit": commit}


def _repository_id(connection: Connection, job: Upload) -> str:
    if "/" in job.repository:
        return job.repository
    if job.namespace is not None:
        return f"{job.namespace}/{job.repository}"
    answer(stage="asking whose token this is")
    return f"{connection.ask(connection.api.whoami)['name']}/{job.repository}"


def _send(repository: HubRepository, files: HubFiles) -> str:
    """Send the files in one commit, if they are not there already; return the commit that has them."""
    answer(stage=f"sending the files to {repository.id}")
    commit = repository.connection.ask(lambda: _commit(repository, files))
    try:
        repository.connection.ask(repository.describe)
    except UploadFailed as error:
        raise UploadFailed(
            f"{repository.url} was private when the adapter was sent, and is not any more: see who changed "
            f"it, and make it private at {repository.url}/settings"
        ) from error
    return commit


def _commit(repository: HubRepository, files: HubFiles) -> str:
    """Send and commit once. On a retry, a commit whose answer was lost turns out to be there."""
    from huggingface_hub import CommitOperationAdd

    api = repository.connection.api
    # The client takes a path that begins with ~ for one in the home folder.
    operations = [CommitOperationAdd(path_in_repo=WEIGHTS, path_or_fileobj=files.weights.absolute())]
    operations += [CommitOperationAdd(name, content) for name, content in files.texts.items()]
    try:
        api.preupload_lfs_files(repository.id, operations)
    except Exception as error:
        raise RetriesExhausted from error
    # The weights are there, but not in a commit yet. Sending them took a while: is the repository still
    # private, and which commit do we build on?
    head = repository.describe().sha
    # The client leaves out what the Hub has already, and does not commit when nothing is left.
    commit = api.create_commit(
        repository.id, operations, commit_message="Upload the LoRA adapter", parent_commit=head
    )
    return commit.oid


def main() -> int:
    """Do the job on standard input; answer the result or the problem on standard output."""
    return serve(upload)


if __name__ == "__main__":
    sys.exit(main())
