"""What a program finds around it: `.env`, the Hub token, folders of caches, processors, other processes."""

import os
from pathlib import Path

from mimicry.common.errors import UsageError


def load_environment(start: Path | None = None) -> None:
    """Set the variables of the nearest `.env`, looked for from `start` (default: working directory) upwards.

    A variable that is set already keeps its value, even an empty one.

    Raises:
        UsageError: there is a `.env` and it cannot be read.
    """
    folder = (start or Path.cwd()).absolute()
    # A folder named .env is somebody's virtual environment.
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
    """Return which of the processes that train together this is, from 0, by the launcher's word."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Return how many processes train together, by the launcher's word."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processor_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hub_token() -> str | None:
    """Return the Hub token from HF_TOKEN, or None when that is missing or blank."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def cache_folder(name: str) -> Path:
    """Return this user's folder for what can be made anew, by the rules of the XDG base directories."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    root = given if os.path.isabs(given) else os.path.expanduser("~/.cache")  # noqa: PTH117, PTH111 - no home, no error
    return Path(root, "mimicry", name)
