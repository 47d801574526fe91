"""The versions of everything that a result may depend on."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mimicry

_LIBRARIES = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow", "safetensors"),
    "bitsandbytes",
)


def versions() -> dict[str, str | bool | None]:
    """Return the versions of Python, of the libraries that matter, and of this project."""
    found: dict[str, str | bool | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return {**found, "mimicry": mimicry.__version__, **_git_state()}


def _git_state() -> dict[str, str | bool | None]:
    """Return commit and dirtiness of the checkout we run from; None where it is not a checkout."""
    root = Path(mimicry.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit, "git_dirty": dirty}


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
