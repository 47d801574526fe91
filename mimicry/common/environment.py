"""The environment of a program: `.env`, the Hub token, cache folders, processors, the launcher's ranks."""

import os
from pathlib import Path

from mimicry.common.errors import UsageError


def load_environment(start: Path | None = None) -> None:
    """Set the variables of the nearest `.env` in `start` (default: working directory) or a folder above.

    A variable that is set already keeps its value, even an empty one.

    Raises:
        UsageError: the `.env` cannot be read.
    """
    folder = (start or Path.cwd()).absolute()
    # A folder named .env is a virtual environment.
    path = next((path / ".env" for path in (folder, *folder.parents) if (path / ".env").is_file()), None)
    if path is None:
        return
    from dotenv import load_dotenv  # slow to import, and most machines have no .env

    try:
        load_dotenv(path)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): it must be a readable text file in UTF-8, as .env.example is; "
            f"try: chmod u+r {path}"
        ) from error


def process_index() -> int:
    """Return the rank of this process among those that train together, from 0, as the launcher set it."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Return how many processes train together, as the launcher set it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processor_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hub_token() -> str | None:
    """Return the Hub token from HF_TOKEN, or None when that is missing or blank."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def cache_folder(name: str) -> Path:
    """Return this user's folder `name` for files that can be made again, by the XDG base directory rules."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # Unlike Path, these do not fail for a user without a home.
    root = given if os.path.isabs(given) else os.path.expanduser("~/.cache")  # noqa: PTH117, PTH111
    return Path(root, "mimicry", name)
