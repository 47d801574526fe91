"""One repository on the Hub: is it private, and may our adapter go there? Used in child processes."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mimicry.common.errors import UploadFailed
from mimicry.common.files import read_json
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.hub.child import answer, retry, status_of
from mimicry.tuning.hub.upload import MADE_FOR

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

Result = TypeVar("Result")

# What the Hub puts into a new repository, or a person before the first upload.
_NOT_AN_ADAPTER = frozenset({".gitattributes", "README.md"})


@dataclass(frozen=True)
class Connection:
    """The client, and how long to wait before each retry of a request (see `retry`)."""

    api: "HfApi"
    waits: Sequence[float]

    @classmethod
    def open(cls, waits: Sequence[float]) -> "Connection":
        """Connect with the token, and to the endpoint, of the environment."""
        from huggingface_hub import HfApi  # imported late: a broken adapter does not need the client

        return cls(HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"]), waits)

    def ask(self, call: Callable[[], Result]) -> Result:
        """Return what `call` returns; it is retried after a transient error."""
        return retry(call, self.waits, lambda text: answer(stage=text))


@dataclass(frozen=True)
class HubRepository:
    """A model repository, by its id: owner/name."""

    connection: Connection
    id: str

    @property
    def url(self) -> str:
        return f"{self.connection.api.endpoint}/{self.id}"

    def create(self) -> None:
        """Create it as a private one; an existing one stays as it is."""
        answer(stage=f"creating {self.id}")
        api = self.connection.api
        self.connection.ask(lambda: api.create_repo(self.id, private=True, exist_ok=True))

    def refuse_other(self, ours: Mapping[str, Any]) -> None:
        """Make sure that the adapter whose training_run.json is `ours` may go there.

        Raises:
            UploadFailed: it is not private, or holds anything but an earlier version of the same adapter.
        """
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
        """Return the repository's description; this asks the Hub once.

        Raises:
            UploadFailed: it is not the one that was asked for, or not private.
        """
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
        """Return the training_run.json of the repository; None when it has none that can be read."""
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
        theirs: the training_run.json of the repository; None when it has none that can be read.
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
