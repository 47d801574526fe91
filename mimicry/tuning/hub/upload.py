"""The Hub from this side: names of repositories, and the upload of one adapter by a child process."""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mimicry.common.environment import hub_token
from mimicry.common.errors import UploadFailed
from mimicry.common.files import sha256_text
from mimicry.common.scrubbing import scrub
from mimicry.study.tree import AdapterId
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.hub.child import WAITS, run_child
from mimicry.tuning.hub.retries import TOKENS

MAX_NAME_LENGTH = 96
# The id of a model, owner/name.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

_HASH_LENGTH = 8
# The client sends a file without a word: silence is allowed for as long as a slow line takes.
_SLOWEST_BYTES_PER_SECOND = 50_000


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """What was typed about uploads.

    A repository goes under `namespace`, or else under the token's own user. `base_model_id` is the Hub id to
    publish in place of a base model that is a local folder.
    """

    namespace: str | None = None
    base_model_id: str | None = None

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
            prefix: see `repository_name`.
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


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Where an adapter is now: the repository's id, its address, and the commit that holds the files."""

    repository_id: str
    url: str
    commit: str


def repository_name(prefix: str, adapter: AdapterId) -> str:
    """Return `{prefix}-{protection}-{countermeasure}-{artist}`, made valid for the Hub.

    A variant's name comes after the artist's. Accents are stripped, anything outside A-Z a-z 0-9 . _ -
    becomes a dash. A name that had to change ends in a short hash of the original, so that distinct artists
    stay distinct; the composed and decomposed forms of one name are one artist.
    """
    condition = adapter.condition
    parts = [prefix, condition.protection, condition.countermeasure, adapter.artist.name, adapter.variant]
    original = unicodedata.normalize("NFC", "-".join(part for part in parts if part is not None))
    letters = [c for c in unicodedata.normalize("NFKD", original) if not unicodedata.combining(c)]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", "".join(letters))
    name = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name)).rstrip("-.")
    if name == original and len(name) <= MAX_NAME_LENGTH and not name.endswith(".git"):
        return name
    stem = name[: MAX_NAME_LENGTH - _HASH_LENGTH - 1].rstrip("-.")
    return f"{stem}-{sha256_text(original)[:_HASH_LENGTH]}"


def colliding_names(artists: Iterable[tuple[str, str]]) -> list[str]:
    """Return a problem for each repository name that several of the (artist, repository name) pairs share.

    The Hub does not tell upper from lower case in names, so neither does this.
    """
    sharing: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for artist, name in artists:
        sharing[name.lower()].append((artist, name))
    return [
        f"{' and '.join(repr(artist) for artist, _ in group)} would be uploaded to one repository, "
        f"{group[0][1]!r}: rename a folder, train them apart with --style and another "
        "--hub-namespace, or switch uploads off with --no-push-to-hub"
        for group in sharing.values()
        if len(group) > 1
    ]


def token_problems() -> list[str]:
    """Return what is wrong with the token, before anything is trained; for runs with uploads on."""
    if hub_token() is not None:
        return []
    return [
        "HF_TOKEN is not set, and trained adapters are to be uploaded to the Hub: make a token with write "
        f"access at {TOKENS} and set HF_TOKEN in the environment or in a file .env (.env.example shows it), "
        "or switch uploads off with --no-push-to-hub"
    ]


def upload_adapter(
    job: UploadJob,
    *,
    stall_seconds: float = 300,
    waits: Sequence[float] = WAITS,
    python: str = sys.executable,
) -> Uploaded:
    """Upload the final files of `job.folder` to a private repository, in one commit, and say where they are.

    Args:
        stall_seconds: how long the upload may be silent, beyond the time that sending the weights takes.
        waits: seconds before each repetition of a request that failed by what may pass.

    Raises:
        UploadFailed: nothing was committed, as far as is known; the message holds no token.
    """
    if problems := token_problems():
        raise UploadFailed(*problems)
    weights = AdapterFolder(job.folder).weights
    weight_bytes = weights.stat().st_size if weights.is_file() else 0
    heard = run_child(
        "mimicry.tuning.hub.upload_child",
        asdict(job) | {"folder": str(job.folder)},
        silence_seconds=stall_seconds + weight_bytes / _SLOWEST_BYTES_PER_SECOND,
        waits=waits,
        python=python,
    )
    if heard.problem is None:
        return Uploaded(**heard.result)
    raise UploadFailed(
        scrub(
            f"{job.repository} was not uploaded: {heard.problem}; the adapter in {job.folder} is complete "
            "all the same: the next call of the same command uploads it, as apply_tuning --upload-only does; "
            "--no-push-to-hub switches uploads off"
        )
    )
