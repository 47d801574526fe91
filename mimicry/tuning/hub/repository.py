"""One repository on the Hub: is it ours to write to, and private. In a child process (see hub_child.py)."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mimicry.common.errors import UploadFailed
from mimicry.common.files import read_json
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.hub.child import say
from mimicry.tuning.hub.identity import is_empty, other_adapter
from mimicry.tuning.hub.retries import repeated, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

Result = TypeVar("Result")


@dataclass(frozen=True)
class Connection:
    """The client, and how long to wait before what failed is asked again (see `repeated`)."""

    api: "HfApi"
    waits: Sequence[float]

    @classmethod
    def open(cls, waits: Sequence[float]) -> "Connection":
        """Connect with the token, and to the endpoint, of the environment."""
        from huggingface_hub import HfApi  # imported late: a broken adapter needs no client

        return cls(HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"]), waits)

    def ask(self, call: Callable[[], Result]) -> Result:
        """Return what `call` returns, which is repeated when it fails by what may pass."""
        return repeated(call, self.waits, lambda text: say(stage=text))


@dataclass(frozen=True)
class HubRepository:
    """A model repository, by its id: owner/name."""

    connection: Connection
    id: str

    @property
    def url(self) -> str:
        return f"{self.connection.api.endpoint}/{self.id}"

    def create(self) -> None:
        """Create it, private; one that is there already stays as it is."""
        say(stage=f"creating {self.id}")
        api = self.connection.api
        self.connection.ask(lambda: api.create_repo(self.id, private=True, exist_ok=True))

    def refuse_other(self, ours: Mapping[str, Any]) -> None:
        """Make sure that the adapter whose training_run.json is `ours` may go there.

        Raises:
            UploadFailed: it is not private, or holds something else than an earlier adapter of the same kind.
        """
        say(stage=f"checking that {self.id} is private")
        info = self.connection.ask(self.look)
        if is_empty([file.rfilename for file in info.siblings or []]):
            return
        say(stage=f"checking whose adapter {self.id} holds")
        other = other_adapter(ours, self._training_run(info.sha))
        if other is not None:
            raise UploadFailed(
                f"{self.url} holds {other}, and nothing was sent to it: rename one of the artists' folders, "
                f"type another --hub-namespace, or delete or rename the repository at {self.url}/settings"
            )

    def look(self) -> "ModelInfo":
        """Return the repository's description; asks once.

        Raises:
            UploadFailed: it is not the one that was asked for, or not private.
        """
        try:
            info = self.connection.api.model_info(self.id)
        except Exception as error:
            if status_of(error) != 404:
                raise
            raise UploadFailed(
                f"the name {self.id} is taken on the Hub by something that is no model repository, or that "
                f"HF_TOKEN may not see; rename or delete that, or type another --hub-namespace"
            ) from error
        if info.id.casefold() != self.id.casefold():
            raise UploadFailed(
                f"{self.url} leads to {info.id}, which it was renamed to, and nothing was sent; rename the "
                f"artist's folder, or type another --hub-namespace"
            )
        # It may have existed before, or the owner's settings may have overruled us.
        if info.private is not True:
            raise UploadFailed(
                f"{self.url} is not private, and nothing was sent to it: make it private at "
                f"{self.url}/settings, or delete it"
            )
        return info

    def _training_run(self, revision: str | None) -> Any:
        """Return the training_run.json that is there; None when there is none that can be read."""
        from huggingface_hub.errors import EntryNotFoundError

        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self.connection.api.hf_hub_download(
                    self.id, TRAINING_RUN, revision=revision, cache_dir=folder
                )
                return read_json(Path(path))
            except (EntryNotFoundError, ValueError, RecursionError):
                return None
