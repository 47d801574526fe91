"""What is checked before the first GPU second, for the whole batch."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mimicry.common.files import existing_part
from mimicry.tuning.hub.names import token_problems


def batch_problems(
    stack_problems: Sequence[str], output_root: Path, adapter_count: int, needed_bytes: int, *, uploads: bool
) -> list[str]:
    """Return everything that forbids training `adapter_count` adapters below `output_root`.

    Args:
        stack_problems: what the stack itself says.
        needed_bytes: what the adapters take on disk.
    """
    return [
        *(token_problems() if uploads else []),
        *stack_problems,
        *disk_problems(output_root, adapter_count, needed_bytes),
    ]


def disk_problems(output_root: Path, adapter_count: int, needed_bytes: int) -> list[str]:
    """Return why so many adapters cannot be written below `output_root`."""
    folder = existing_part(output_root)
    problems = []
    if not os.access(folder, os.W_OK):
        problems.append(f"{folder} is not writable; name another tree with --data-root")
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        problems.append(
            f"{adapter_count} adapters need about {needed_bytes / 1e9:.2f} GB on the disk of {folder}, which "
            f"has {free / 1e9:.2f} GB free; make room, or train fewer at once with --style or --artist"
        )
    return problems
