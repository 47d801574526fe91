"""The child that asks the Hub, before training, whether uploads will be accepted; preflight.py starts it.

The request is {"namespace": ..., "jobs": [{"repository": ..., "made_for": {...}, "input_dir": ...}]}, and the
result is a list of problems.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimicry.common.errors import UploadFailed
from mimicry.study.images import ImageFolder
from mimicry.tuning.hub.child import answer, serve
from mimicry.tuning.hub.client import Connection, HubRepository
from mimicry.tuning.hub.names import TOKENS_PAGE
from mimicry.tuning.hub.upload import MADE_FOR

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
    """Return why the account and its token may not write to repositories of `owner`.

    `account` is the answer to whoami. What that does not say is found out by the upload.
    """
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
    """Check what standard input asks for; answer the problems on standard output."""
    return serve(check)


if __name__ == "__main__":
    sys.exit(main())
