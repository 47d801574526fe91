"""The child that uploads one adapter: `python -m mimicry.tuning.hub.upload_child`, started by hub.py.

HF_TOKEN and HF_ENDPOINT come from the environment.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mimicry.common.errors import UploadFailed
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.hub.child import say, serve
from mimicry.tuning.hub.files import HubFiles, hub_files
from mimicry.tuning.hub.repository import Connection, HubRepository
from mimicry.tuning.hub.retries import RepeatedInVainError
from mimicry.tuning.hub.upload import UploadJob


def upload(words: dict[str, Any]) -> dict[str, str]:
    """Upload the adapter of the UploadJob in `words`, and say where it is."""
    waits = words.pop("waits", ())
    job = UploadJob(**words | {"folder": Path(words["folder"])})
    say(stage="reading the adapter")
    files = hub_files(job)
    connection = Connection.open(waits)
    repository = HubRepository(connection, _repository_id(connection, job))
    repository.create()
    repository.refuse_other(json.loads(files.texts[TRAINING_RUN]))
    commit = _send(repository, files)
    return {"repository_id": repository.id, "url": repository.url, "commit": commit}


def _repository_id(connection: Connection, job: UploadJob) -> str:
    if "/" in job.repository:
        return job.repository
    if job.namespace is not None:
        return f"{job.namespace}/{job.repository}"
    say(stage="asking whose token this is")
    return f"{connection.ask(connection.api.whoami)['name']}/{job.repository}"


def _send(repository: HubRepository, files: HubFiles) -> str:
    """Send the files in one commit, or none when they are there already; return the commit."""
    say(stage=f"sending the files to {repository.id}")
    commit = repository.connection.ask(lambda: _commit(repository, files))
    try:
        repository.connection.ask(repository.look)
    except UploadFailed as error:
        raise UploadFailed(
            f"{repository.url} was private when the adapter was sent, and is so no more: see who changed it, "
            f"and make it private at {repository.url}/settings"
        ) from error
    return commit


def _commit(repository: HubRepository, files: HubFiles) -> str:
    """Send and commit once. A commit whose answer was lost is found to be there when this is repeated."""
    from huggingface_hub import CommitOperationAdd

    api = repository.connection.api
    # The client takes a path that begins with ~ for one in the home folder.
    operations = [CommitOperationAdd(path_in_repo=WEIGHTS, path_or_fileobj=files.weights.absolute())]
    operations += [CommitOperationAdd(name, content) for name, content in files.texts.items()]
    try:
        api.preupload_lfs_files(repository.id, operations)
    except Exception as error:
        raise RepeatedInVainError from error
    # The weights are there, but in no commit yet. That took a while: is it still private, and will the commit
    # go on top of what was looked at?
    head = repository.look().sha
    # The client leaves out what the Hub has already, and makes no commit when that is everything.
    commit = api.create_commit(
        repository.id, operations, commit_message="Upload the LoRA adapter", parent_commit=head
    )
    return commit.oid


def main() -> int:
    """Do the one job on standard input; say the result or the problem on standard output."""
    return serve(upload)


if __name__ == "__main__":
    sys.exit(main())
