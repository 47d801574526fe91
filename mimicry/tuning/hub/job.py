"""What is uploaded: one adapter, its place in the study, and where it went."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.study.tree import AdapterId
from mimicry.tuning.hub.names import repository_name

# The key of `UploadJob.made_for` in the copy of training_run.json that goes to the Hub.
MADE_FOR = "made_for"


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """What was typed about uploads.

    A repository goes under `namespace`, or else under the token's own user. `base_model_id` is the Hub id to
    publish in place of a base model that is a local folder.
    """

    namespace: str | None = None
    base_model_id: str | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "HubOptions":
        """Return what a command with `hub_options` was given."""
        return cls(namespace=parameters["hub_namespace"], base_model_id=parameters["base_model_id"])

    def words(self) -> list[str]:
        """Return them as options of the wrapper."""
        options = {"--hub-namespace": self.namespace, "--base-model-id": self.base_model_id}
        return [f"{option}={value}" for option, value in options.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class UploadJob:
    """One complete adapter on its way to the Hub.

    `repository` is a name or namespace/name; a bare name goes under `namespace`, or else under the token's
    own user. `split` and `style` tell artists of one name apart. `base_model_id` is the Hub id to publish in
    place of a base model that is a local folder.
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
    def of(
        cls, adapter: AdapterId, folder: Path, prefix: str, hub: HubOptions | None, name: str | None = None
    ) -> "UploadJob":
        """Return the upload of the adapter in `folder`.

        Args:
            prefix: see `mimicry.tuning.hub.names.repository_name`.
            name: of the repository; by default made from the adapter.
        """
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
