"""How much memory of the machine, not of the GPU, may be used for what is optional."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


def host_memory_problem(byte_count: int) -> str | None:
    """Return why something optional of `byte_count` bytes is too much for host memory, in words, or None.

    It may take half of what is free: the rest is for latents, prompts and other programs.
    """
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


@dataclass(frozen=True)
class _Files:
    """The files of one version of control groups: their folder, limit, use, and cache that may go."""

    folder: str
    limit: str
    used: str
    cache: str


_VERSIONS = {
    "": _Files("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def group_free_bytes(membership: Path, root: Path) -> Iterator[int]:
    """Yield what is left in each control group that holds us and has a limit."""
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in lines:
        _, controllers, name = line.split(":", 2)
        files = _VERSIONS.get(controllers)
        if files is None:
            continue
        group = root / files.folder / name.lstrip("/")
        # A limit anywhere above counts.
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                limit, used = (int((folder / file).read_text()) for file in (files.limit, files.used))
                facts = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                yield max(0, limit - used + int(facts.get(files.cache, 0)))
