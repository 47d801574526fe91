"""The GPUs that this program may use, and how much memory of the machine. No torch: it takes seconds.

CUDA numbers GPUs by speed, nvidia-smi by their place on the bus: hence CUDA_DEVICE_ORDER.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.environment import VISIBLE_GPUS, sees_gpu

_ORDER = "CUDA_DEVICE_ORDER"
_LISTING_SECONDS = 30.0
# Lines of `nvidia-smi -L`.
_GPU = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)\s]+)\)")
_INSTANCE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)\s]+)\)")
_UUIDS = ("GPU-", "MIG-")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance of one: its name in CUDA_VISIBLE_DEVICES, and its UUID if it is known."""

    name: str
    uuid: str = ""

    def is_called(self, word: str) -> bool:
        return word in (self.name, self.uuid)


def find_gpus() -> list[Gpu]:
    """Return the GPUs that this program may use, as far as they can be told: AMD's only from the variable."""
    # In a container with /dev/nvidia2 alone, that is GPU 0 for CUDA.
    by_files = [Gpu(str(number)) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    listed = _listed_by_nvidia_smi() or by_files
    given = os.environ.get(VISIBLE_GPUS)
    if given is None:
        return listed
    if not listed and not sees_gpu():
        return []
    return [Gpu(name) for name in _named(given)]


def gpu_variables(names: Iterable[str], around: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a program sees these GPUs only; no name: none."""
    chosen = {VISIBLE_GPUS: ",".join(names)}
    # Numbers that the user has given are numbers in the order that holds for this program.
    return chosen if VISIBLE_GPUS in around or _ORDER in around else {**chosen, _ORDER: "PCI_BUS_ID"}


def _named(value: str) -> list[str]:
    """Return the names in a CUDA_VISIBLE_DEVICES: like CUDA, only those before the first that is not one."""
    names: list[str] = []
    for word in (word.strip() for word in value.split(",")):
        if not (word.isdecimal() or word.startswith(_UUIDS)):
            break
        names.append(word)
    return list(dict.fromkeys(names))


def _listed_by_nvidia_smi() -> list[Gpu]:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LISTING_SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):  # no driver, or one that does not answer
        return []
    found: list[Gpu] = []
    whole: Gpu | None = None
    for line in listing.splitlines():
        if match := _GPU.match(line):
            whole = Gpu(match[1], match[2])
            found.append(whole)
        elif match := _INSTANCE.match(line):
            if whole in found:  # it cannot be used as a whole
                found.remove(whole)
            found.append(Gpu(match[1], match[1]))
    return found


def host_memory_problem(byte_count: int) -> str | None:
    """Return why something optional would take more than half of the free host memory, in words, or None."""
    free = free_host_bytes()
    if byte_count <= free // 2:
        return None
    return f"{byte_count / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB of free host memory"


def free_host_bytes() -> int:
    """Return how much memory this process may still take: of the machine, or of its control group."""
    return min(_machine_free_bytes(), *group_free_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


def _machine_free_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Elsewhere than on Linux: all that there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Of each version of control groups: folder, limit, use, and the cache that may go.
_GROUP_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group_free_bytes(membership: Path, root: Path) -> Iterator[int]:
    """Yield what is left in each control group that holds us and has a limit."""
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in _GROUP_FILES:
            continue
        hierarchy, *files, cache = _GROUP_FILES[controllers]
        group = root / hierarchy / name.lstrip("/")
        # A limit anywhere above counts.
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                limit, used = (int((folder / file).read_text()) for file in files)
                facts = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                yield max(0, limit - used + int(facts.get(cache, 0)))
