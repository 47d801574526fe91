"""What is checked before the first GPU second, for the whole batch."""

import os
import shutil
from pathlib import Path

from mimicry.common.files import existing_part
from mimicry.tuning.hub import token_problems
from mimicry.tuning.options import TuningConfig
from mimicry.tuning.stack_traits import StackTraits


def batch_problems(
    traits: StackTraits,
    config: TuningConfig | None,
    output_root: Path,
    adapter_count: int,
    *,
    uploads: bool,
    network: bool = True,
) -> list[str]:
    """Return everything that forbids training `adapter_count` adapters below `output_root`.

    `config` is None for a stack that takes no options: its base model is its own affair. Without `network`
    only what is quick is checked, on this machine.
    """
    return [
        *(token_problems() if uploads else []),
        *traits.problems(config, network=network),
        *disk_problems(output_root, adapter_count, traits.disk_bytes(config, adapter_count)),
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
