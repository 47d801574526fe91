"""Names on the Hub: the repository of an adapter, and names that a user typed; and the token."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping

from mimicry.common.environment import hub_token
from mimicry.common.errors import UsageError
from mimicry.common.files import sha256_text
from mimicry.study.tree import AdapterId

# What else can be done about a fault of uploads, where a training can do without them.
WITHOUT_UPLOADS = ", or switch uploads off with --no-push-to-hub"
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def token_problems(else_do: str = WITHOUT_UPLOADS) -> list[str]:
    """Return what is wrong with the token; `else_do` ends the message."""
    if hub_token() is not None:
        return []
    return [
        "HF_TOKEN is not set, and trained adapters are to be uploaded to the Hub: make a token with write "
        f"access at {TOKENS_PAGE} and set HF_TOKEN in the environment or in a file .env (.env.example shows "
        f"it){else_do}"
    ]


MAX_NAME_LENGTH = 96
_HASH_LENGTH = 8


def repository_name(prefix: str, adapter: AdapterId) -> str:
    """Return `{prefix}-{protection}-{countermeasure}-{artist}[-{variant}]`, made valid for the Hub.

    Accents are stripped, anything outside A-Z a-z 0-9 . _ - becomes a dash. A name that had to change ends in
    a short hash of the original, so that distinct artists stay distinct; the composed and decomposed forms of
    one name are one artist.
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


def colliding_names(artists: Iterable[tuple[str, str]], else_do: str = WITHOUT_UPLOADS) -> list[str]:
    """Return a problem for each repository name that several of the (artist, repository name) pairs share.

    Like the Hub, this ignores upper and lower case. `else_do` ends the message.
    """
    sharing: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for artist, name in artists:
        sharing[name.lower()].append((artist, name))
    return [
        f"{' and '.join(repr(artist) for artist, _ in group)} would be uploaded to one repository, "
        f"{group[0][1]!r}: rename a folder, train them apart with --style and another "
        f"--hub-namespace{else_do}"
        for group in sharing.values()
        if len(group) > 1
    ]


def is_repository_name(name: str) -> bool:
    """Return whether the Hub takes `name`, which may be NAME or NAMESPACE/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    # Versions of huggingface_hub before 1.0 also let accents and a line break at the end through.
    return name.isascii() and name.isprintable()


def is_model_id(name: str) -> bool:
    """Return whether `name` can be the id of a model on the Hub, owner/name."""
    parts = name.split("/")
    return len(parts) == 2 and is_repository_name(name) and all(part[0].isalnum() for part in parts)


def name_problems(option: str, name: str) -> list[str]:
    """Return what is wrong with the `name` of a repository that `option` was given."""
    if is_repository_name(name):
        return []
    return [
        f"{option} {name!r} is not a name on the Hub: it takes NAME or NAMESPACE/NAME, each of at most "
        f"{MAX_NAME_LENGTH} letters A to Z without accents, digits and _, and inside also single - and ."
    ]


def model_id_problems(base_model_id: str | None) -> list[str]:
    if base_model_id is None or is_model_id(base_model_id):
        return []
    return [
        f"--base-model-id {base_model_id!r} is not the id of a model on the Hub: it must be owner/name, "
        "as in stabilityai/stable-diffusion-3.5-large"
    ]


def refuse_names(names: Mapping[str, str | None], base_model_id: str | None) -> None:
    """Raise UsageError for all names, by their options, and ids that the Hub does not take."""
    given = {option: name for option, name in names.items() if name is not None}
    problems = [problem for option, name in given.items() for problem in name_problems(option, name)]
    if problems := problems + model_id_problems(base_model_id):
        raise UsageError(*problems)
