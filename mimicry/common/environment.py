"""The environment of a program: `.env`, the Hub token, cache folders, processors, ranks, versions."""

import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from mimicry.common.errors import UsageError
from mimicry.common.text import printable

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
# Threads of the libraries that compute on the processors, and what idle ones do.
THREADS = "OMP_NUM_THREADS"
IDLE_THREADS = "OMP_WAIT_POLICY"
# What torchrun, accelerate, MPI or a cluster's prologue tell the processes that they start. A program that
# finds these takes itself for one of several that train together, and waits for the others.
_LAUNCHER_VARIABLES = frozenset(
    {
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "NODE_RANK"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    }
)
_LAUNCHER_PREFIXES = (
    *("TORCHELASTIC_", "PET_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"),
    *("ACCELERATE_", "FSDP_", "MEGATRON_LM_"),
)
# These choose a device or say more; no launcher sets them.
_USERS_OWN = frozenset({"ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_CPU", "ACCELERATE_LOG_LEVEL"})


def quiet_libraries() -> None:
    """Keep libraries from warning of packages that nothing here needs; call it before they are imported."""
    # transformers would warn that torchvision is missing.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # bitsandbytes, which peft imports where it is installed, would warn that it lacks a kernel for the CPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def without_launcher(environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Return an environment without the variables of a surrounding launcher, and a line that names them."""
    removed = sorted(
        name
        for name in environment.keys() - _USERS_OWN
        if name in _LAUNCHER_VARIABLES or name.startswith(_LAUNCHER_PREFIXES)
    )
    kept = {name: value for name, value in environment.items() if name not in removed}
    named = ", ".join(f"{name}={environment[name]}" for name in removed)
    line = f"left out of the environment, as of a launcher around this program: {named}" if removed else ""
    return kept, printable(line)


def load_environment(start: Path | None = None) -> None:
    """Set the variables of the nearest `.env` in `start` (default: working directory) or a folder above.

    A variable that is set already keeps its value, even an empty one. UsageError where it cannot be read.
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
    """Return the rank of this process among those that train together, from 0."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def processor_count() -> int:
    """Return how many processors this process may use: in a job of Slurm, no more than it has asked for."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(count, int(asked)) if asked.isdecimal() and int(asked) > 0 else count


def typed_device() -> str:
    """Return the variable, with its value, that tells accelerate which device to use; empty: none does."""
    named = {name: os.environ.get(name, "") for name in ("ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_CPU")}
    off = ("", "0", "false", "no")
    return next((f"{name}={value}" for name, value in named.items() if value.lower() not in off), "")


def typed_threads(environment: Mapping[str, str]) -> int | None:
    """Return OMP_NUM_THREADS; None where it is not set, or is not a number from 1 on."""
    asked = environment.get(THREADS, "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None


def sees_gpu() -> bool:
    """Return whether this process may find a GPU, told by device files: torch takes seconds to ask."""
    if os.environ.get(VISIBLE_GPUS, "all").strip() in ("", "-1"):
        return False
    # Of NVIDIA, of AMD, and of either under Windows.
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(map(os.path.exists, ("/dev/kfd", "/dev/dxg")))


def hub_token() -> str | None:
    """Return the Hub token from HF_TOKEN, or None when that is missing or blank."""
    return os.environ.get("HF_TOKEN", "").strip() or None


def cache_folder(name: str) -> Path:
    """Return this user's folder `name` for files that can be made again, by the XDG base directory rules."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # Unlike Path, these do not fail for a user without a home.
    root = given if os.path.isabs(given) else os.path.expanduser("~/.cache")  # noqa: PTH117, PTH111
    return Path(root, "mimicry", name)


_LIBRARIES = (
    *("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow", "safetensors"),
    "bitsandbytes",
)


def versions(project: ModuleType) -> dict[str, str | bool | None]:
    """Return the versions of Python, of the libraries that matter, and of the package `project`."""
    found: dict[str, str | bool | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = None
    return {**found, project.__name__: project.__version__, **_git_state(project)}


def _git_state(project: ModuleType) -> dict[str, str | bool | None]:
    root = Path(str(project.__file__)).resolve().parent.parent
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
