"""What is uploaded: one adapter, its place in the study, and where it went."""

from dataclasses import dataclass
from pathlib import Path

# The key of `UploadJob.made_for` in the copy of training_run.json that goes to the Hub.
MADE_FOR = "made_for"


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
