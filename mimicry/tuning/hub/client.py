"""The child that talks to the Hub: `python -m mimicry.tuning.hub.client upload` or `check`.

`upload` sends one adapter, `check` says before a training whether uploads will be accepted; see `upload.py`
for their requests. HF_TOKEN and HF_ENDPOINT come from the environment.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimicry.common.errors import UploadFailed
from mimicry.common.files import read_json
from mimicry.study.images import ImageFolder
from mimicry.tuning.adapters import TRAINING_RUN, WEIGHTS
from mimicry.tuning.hub.child import Result, RetriesExhausted, answer, retry, serve, status_of
from mimicry.tuning.hub.files import HubFiles, hub_files
from mimicry.tuning.hub.names import TOKENS_PAGE
from mimicry.tuning.hub.upload import MADE_FOR, Upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

# What the Hub puts into a new repository, or a person before the first upload.
_NOT_AN_ADAPTER = frozenset({".gitattributes", "README.md"})


@dataclass(frozen=True)
class Connection:
    """The client, and how long to wait before each retry of a request (see `retry`)."""

    api: "HfApi"
    waits: Sequence[float]

    @classmethod
    def open(cls, waits: Sequence[float]) -> "Connection":
        from huggingface_hub import HfApi  # imported late: a broken adapter does not need the client

        return cls(HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"]), waits)

    def ask(self, call: Callable[[], Result]) -> Result:
        return retry(call, self.waits, lambda text: answer(stage=text))


@dataclass(frozen=True)
class HubRepository:
    connection: Connection
    id: str

    @property
    def url(self) -> str:
        return f"{self.connection.api.endpoint}/{self.id}"

    def create(self) -> None:
        answer(stage=f"creating {self.id}")
        api = self.connection.api
        self.connection.ask(lambda: api.create_repo(self.id, private=True, exist_ok=True))

    def refuse_other(self, ours: Mapping[str, Any]) -> None:
        """Raise UploadFailed unless it is private, and holds nothing or an earlier version of `ours`."""
        answer(stage=f"checking that {self.id} is private")
        info = self.connection.ask(self.describe)
        if {file.rfilename for file in info.siblings or []} <= _NOT_AN_ADAPTER:
            return
        answer(stage=f"checking whose adapter {self.id} holds")
        other = other_adapter(ours, self._training_run(info.sha))
        if other is not None:
            raise UploadFailed(
                f"{self.url} holds {other}, and nothing was sent to it: rename one of the artists' folders, "
                f"type another --hub-namespace, or delete or rename the repository at {self.url}/settings"
            )

    def describe(self) -> "ModelInfo":
        """Ask the Hub once; raises UploadFailed for a repository that is another one, or not private."""
        try:
            info = self.connection.api.model_info(self.id)
        except Exception as error:
            if status_of(error) != 404:
                raise
            raise UploadFailed(
                f"the name {self.id} is taken on the Hub by something that is not a model repository, or "
                f"that HF_TOKEN may not see; rename or delete it, or type another --hub-namespace"
            ) from error
        if info.id.casefold() != self.id.casefold():
            raise UploadFailed(
                f"{self.url} was renamed and now leads to {info.id}, and nothing was sent; rename the "
                f"artist's folder, or type another --hub-namespace"
            )
        # It may have existed before, or the owner's settings may have overruled `create`.
        if info.private is not True:
            raise UploadFailed(
                f"{self.url} is not private, and nothing was sent to it: make it private at "
                f"{self.url}/settings, or delete it"
            )
        return info

    def _training_run(self, revision: str | None) -> Any:
        from huggingface_hub.errors import EntryNotFoundError

        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self.connection.api.hf_hub_download(
                    self.id, TRAINING_RUN, revision=revision, cache_dir=folder
                )
                return read_json(Path(path))
            except (EntryNotFoundError, ValueError, RecursionError):
                return None


def other_adapter(ours: Mapping[str, Any], theirs: Any) -> str | None:
    """Return whose adapter a repository holds, in words; None when it is an earlier version of ours.

    It is ours when it was made for the same artist and condition, whatever the recipe; or from some of the
    same images, which no other artist and no other condition has: a folder was renamed then.

    Args:
        ours: `made_for` and `images` of the adapter that is to go there.
        theirs: the training_run.json of the repository, if it has any.
    """
    if not isinstance(theirs, dict):
        return "files of something else, without a training_run.json that could be read"
    place = theirs.get(MADE_FOR)
    if place is not None and place == ours[MADE_FOR]:
        return None
    if _hashes(theirs.get("images")) & _hashes(ours.get("images")):
        return None
    if not isinstance(place, dict):
        return "an adapter that was trained on other images"
    return "the adapter of " + "/".join(str(part) for part in place.values() if part is not None)


def _hashes(images: Any) -> set[str]:
    if not isinstance(images, list):
        return set()
    return {image["sha256"] for image in images if isinstance(image, dict) and image.get("sha256")}


def upload(request: dict[str, Any]) -> dict[str, str]:
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


_WRITES = ("repo.write", "repo.content.write")


def check(request: dict[str, Any]) -> list[str]:
    """Return what would keep the adapters of `request` from being uploaded."""
    connection = Connection.open(request["waits"])
    answer(stage="asking whose token this is")
    account = connection.ask(connection.api.whoami)
    by_owner: dict[str, list[dict[str, Any]]] = {}
    for job in request["jobs"]:
        owner, _, name = job["repository"].rpartition("/")
        by_owner.setdefault(owner or request["namespace"] or account["name"], []).append(job | {"name": name})
    problems = []
    for owner, jobs in by_owner.items():
        refusals = account_problems(account, owner)
        problems += refusals or _repository_problems(connection, owner, jobs)
    return problems


def account_problems(account: Mapping[str, Any], owner: str) -> list[str]:
    """Return why `account`, the answer to whoami, and its token may not write to repositories of `owner`."""
    user = account["name"]
    token = (account.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "read":
        return [
            f"the token in HF_TOKEN may only read: give it write access at {TOKENS_PAGE}, or switch uploads "
            f"off with --no-push-to-hub"
        ]
    if role == "fineGrained":
        return _fine_grained_problems(token.get("fineGrained") or {}, owner)
    if owner == user:
        return []
    roles = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or []}
    if owner not in roles:
        known = ", ".join(map(str, [user, *roles]))
        return [
            f"--hub-namespace {owner}: the account of HF_TOKEN may write to {known} only; name one of these"
        ]
    if roles[owner] == "read":
        return [
            f"--hub-namespace {owner}: {user} may only read there; ask one of its admins for the role write"
        ]
    return []


def _fine_grained_problems(rights: Mapping[str, Any], owner: str) -> list[str]:
    granted = set(rights.get("global") or [])
    for scope in rights.get("scoped") or []:
        if (scope.get("entity") or {}).get("name") == owner:
            granted |= set(scope.get("permissions") or [])
    # A token without a list of rights is of an unknown kind.
    if granted & set(_WRITES) or not rights.get("scoped"):
        return []
    return [
        f"the token in HF_TOKEN is fine-grained and may not write to repositories of {owner}: tick write "
        f"access to them at {TOKENS_PAGE}, or switch uploads off with --no-push-to-hub"
    ]


def _repository_problems(connection: Connection, owner: str, jobs: list[dict[str, Any]]) -> list[str]:
    answer(stage=f"listing the repositories of {owner}")
    # The names of one call begin alike, so one request is enough for hundreds of artists.
    prefix = os.path.commonprefix([job["name"] for job in jobs])  # noqa: RUF071 - names, not paths
    api = connection.api
    models = connection.ask(lambda: list(api.list_models(author=owner, search=prefix)))
    existing = {model.id.casefold() for model in models}
    problems = []
    for job in jobs:
        repository = HubRepository(connection, f"{owner}/{job['name']}")
        if repository.id.casefold() not in existing:
            continue
        images = ImageFolder.read(Path(job["input_dir"]))
        try:
            repository.refuse_other({MADE_FOR: job[MADE_FOR], "images": images.records()})
        except UploadFailed as error:
            problems.append(str(error))
    return problems


def main() -> int:
    return serve({"upload": upload, "check": check}[sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())
