"""The child that uploads one adapter: `python -m mimicry.tuning.hub_upload`, started and watched by hub.py.

It reads an UploadJob as one line of JSON from standard input, which must then stay open: its end means that
the parent is gone, and ends this process too. HF_TOKEN and HF_ENDPOINT come from the environment.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimicry.common.errors import MimicryError, UploadFailed
from mimicry.tuning.adapter import WEIGHTS
from mimicry.tuning.hub import UploadJob
from mimicry.tuning.hub_files import HubFiles, hub_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def main() -> int:
    """Do the one job on standard input; say the result or the problem on standard output."""
    words = json.loads(sys.stdin.buffer.readline())
    job = UploadJob(**words | {"folder": Path(words["folder"])})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _say(result=_upload(job))
    except MimicryError as error:
        _say(problem=str(error))
    except Exception as error:  # the client lets the errors of its HTTP library through
        _say(problem=_explained(error, job))
    else:
        return 0
    return 1


def _upload(job: UploadJob) -> dict[str, str]:
    _say(stage="reading the adapter")
    files = hub_files(job)
    # Imported late: HF_ENDPOINT is read at import, and a broken adapter needs no client.
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ["HF_TOKEN"])
    repository_id = _repository_id(api, job)
    _say(stage=f"creating {repository_id}")
    api.create_repo(repository_id, private=True, exist_ok=True)
    _say(stage=f"checking that {repository_id} is private")
    url = f"{api.endpoint}/{repository_id}"
    # It may have existed before, or the owner's settings may have overruled us.
    if api.model_info(repository_id).private is not True:
        raise UploadFailed(
            f"{url} is not private, and nothing was sent to it: make it private at {url}/settings, "
            "or delete it"
        )
    _say(stage=f"sending the files to {repository_id}")
    return {"repository_id": repository_id, "url": url, "commit": _commit(api, repository_id, files)}


def _repository_id(api: "HfApi", job: UploadJob) -> str:
    if "/" in job.repository:
        return job.repository
    if job.namespace is not None:
        return f"{job.namespace}/{job.repository}"
    _say(stage="asking whose token this is")
    return f"{api.whoami()['name']}/{job.repository}"


def _commit(api: "HfApi", repository_id: str, files: HubFiles) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(path_in_repo=WEIGHTS, path_or_fileobj=files.weights)]
    operations += [CommitOperationAdd(name, content) for name, content in files.texts.items()]
    # The client leaves out what the Hub has already, and makes no commit when that is everything.
    commit = api.create_commit(repository_id, operations, commit_message="Upload the LoRA adapter")
    return commit.oid


def _explained(error: Exception, job: UploadJob) -> str:
    """Return what went wrong, as one line that says what to do next."""
    from huggingface_hub import constants

    said = " ".join(f"{type(error).__name__}: {error}".split())[:600]
    settings = "https://huggingface.co/settings/tokens"
    match _status(error):
        case 401:
            return f"the Hub does not accept the token in HF_TOKEN: make a new one at {settings} ({said})"
        case 403:
            owner = f"to {job.namespace}" if job.namespace else "for its user"
            return f"the token in HF_TOKEN may not write {owner}: give it write access at {settings} ({said})"
        case None:
            return f"{constants.ENDPOINT} did not answer as it should; check the network ({said})"
        case status:
            return f"{constants.ENDPOINT} answered with status {status} ({said})"


def _status(error: BaseException) -> int | None:
    # The client wraps errors of the file transfer in others.
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        cause = cause.__cause__
    return None


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
