"""The child that asks the Hub, before training, whether uploads will be taken: started by hub_preflight.py.

Its words are {"namespace": ..., "jobs": [{"repository": ..., "made_for": {...}, "input_dir": ...}]}, and its
result is a list of problems.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimicry.common.errors import UploadFailed
from mimicry.study.images import ImageFolder
from mimicry.tuning.hub.child import say, serve
from mimicry.tuning.hub.identity import MADE_FOR
from mimicry.tuning.hub.repository import Connection, HubRepository
from mimicry.tuning.hub.retries import TOKENS

_WRITES = ("repo.write", "repo.content.write")


def check(words: dict[str, Any]) -> list[str]:
    """Return what would keep the adapters in `words` from being uploaded."""
    connection = Connection.open(words["waits"])
    say(stage="asking whose token this is")
    account = connection.ask(connection.api.whoami)
    by_owner: dict[str, list[dict[str, Any]]] = {}
    for job in words["jobs"]:
        owner, _, name = job["repository"].rpartition("/")
        by_owner.setdefault(owner or words["namespace"] or account["name"], []).append(job | {"name": name})
    problems = []
    for owner, jobs in by_owner.items():
        refusals = account_problems(account, owner)
        problems += refusals or _repository_problems(connection, owner, jobs)
    return problems


def account_problems(account: Mapping[str, Any], owner: str) -> list[str]:
    """Return why the account and the token that whoami tells about may not write to repositories of `owner`.

    What it does not tell is left to the upload to find out.
    """
    user = account["name"]
    token = (account.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "read":
        return [
            f"the token in HF_TOKEN may only read: give it write access at {TOKENS}, or switch uploads off "
            f"with --no-push-to-hub"
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
    # A token without any list of rights is of a kind that we do not know.
    if granted & set(_WRITES) or not rights.get("scoped"):
        return []
    return [
        f"the token in HF_TOKEN is fine-grained and may not write to repositories of {owner}: tick write "
        f"access to them at {TOKENS}, or switch uploads off with --no-push-to-hub"
    ]


def _repository_problems(connection: Connection, owner: str, jobs: list[dict[str, Any]]) -> list[str]:
    say(stage=f"listing the repositories of {owner}")
    # The names of one call begin alike, so one request does for hundreds of artists.
    prefix = os.path.commonprefix([job["name"] for job in jobs])  # noqa: RUF071 - names, no paths
    api = connection.api
    models = connection.ask(lambda: list(api.list_models(author=owner, search=prefix)))
    there = {model.id.casefold() for model in models}
    problems = []
    for job in jobs:
        repository = HubRepository(connection, f"{owner}/{job['name']}")
        if repository.id.casefold() not in there:
            continue
        images = ImageFolder.read(Path(job["input_dir"]))
        try:
            repository.refuse_other({MADE_FOR: job[MADE_FOR], "images": images.records()})
        except UploadFailed as error:
            problems.append(str(error))
    return problems


def main() -> int:
    """Check what standard input asks for; say the problems on standard output."""
    return serve(check)


if __name__ == "__main__":
    sys.exit(main())
