"""The places of a machine in which trainings run side by side: the GPUs and processor threads of each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mimicry.common.environment import (
    IDLE_THREADS,
    THREADS,
    VISIBLE_GPUS,
    processor_count,
    typed_device,
    typed_threads,
)
from mimicry.common.errors import UsageError
from mimicry.common.hardware import Gpu, find_gpus, gpu_variables
from mimicry.common.text import printable

ALL_GPUS, NO_GPUS = "all", "none"


@dataclass(frozen=True)
class Place:
    """Where one training runs at a time.

    `gpus` are the GPUs that it sees, by their names in CUDA_VISIBLE_DEVICES; None: those that this program
    sees. `threads` are those of each of its processes, None where they are not divided.
    """

    gpus: tuple[str, ...] | None = None
    threads: int | None = None

    def __str__(self) -> str:
        if not self.gpus:
            return ""
        return printable(f"GPU{'s' if len(self.gpus) > 1 else ''} {', '.join(self.gpus)}")

    def variables(self, around: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that a training here gets besides those `around` it."""
        # Threads that wait in a loop take the processors from the trainings beside them.
        found = {} if IDLE_THREADS in around else {IDLE_THREADS: "PASSIVE"}
        if self.threads is not None and typed_threads(around) is None:
            found[THREADS] = str(self.threads)
        return found if self.gpus is None else found | gpu_variables(self.gpus, around)


def choose_places(gpus: str | None, parallel: int = 1, process_count: int = 1) -> tuple[Place, ...]:
    """Return the places that --gpus and --parallel ask for; see their help.

    Args:
        process_count: processes that train an adapter together, one GPU each.

    Raises:
        UsageError: GPUs that are not there, or too few of them.
    """
    groups = _groups(gpus, process_count)
    threads = None
    if len(groups) * parallel > 1:
        threads = max(1, processor_count() // (len(groups) * parallel * process_count))
    # Each group of GPUs gets a training before one gets its second.
    return tuple(Place(group, threads) for _ in range(parallel) for group in groups)


def _groups(asked: str | None, process_count: int) -> list[tuple[str, ...] | None]:
    """Return the GPUs of each place; None: what is visible stays as it is."""
    if asked == NO_GPUS:
        return [()]
    device = typed_device()
    if device:
        if asked is None:
            return [None]
        raise UsageError(f"--gpus {asked}: {device} names the device already; unset it, or leave --gpus out")
    found = find_gpus()
    if asked in (None, ALL_GPUS):
        names = [gpu.name for gpu in found]
        if asked is not None and not names:
            raise UsageError(f"--gpus {ALL_GPUS}: no GPU was found here; see `nvidia-smi -L`")
    else:
        names = _chosen(str(asked), found)
    if not names:
        return [None]
    if len(names) < process_count:
        raise UsageError(
            f"--num-processes {process_count} takes {process_count} GPUs for each training, and there "
            f"{'is' if len(names) == 1 else 'are'} {len(names)}: {', '.join(names)}; type --num-processes "
            f"{len(names)}, and a larger --gradient-accumulation-steps for the same samples a step"
        )
    whole = len(names) // process_count * process_count
    return [tuple(names[start : start + process_count]) for start in range(0, whole, process_count)]


def _chosen(asked: str, found: Sequence[Gpu]) -> list[str]:
    words = [word.strip() for word in asked.split(",")]
    known = {word: next((gpu.name for gpu in found if gpu.is_called(word)), None) for word in words}
    here = ", ".join(gpu.name for gpu in found) or "none; see `nvidia-smi -L`"
    if VISIBLE_GPUS in os.environ:
        here += f" ({VISIBLE_GPUS}={os.environ[VISIBLE_GPUS]})"
    problems = [
        printable(f"--gpus {asked}: {word!r} is not a GPU that this program may use; these are: {here}")
        for word, name in known.items()
        if name is None
    ]
    names = [name for word in words if (name := known[word]) is not None]
    if len(set(names)) < len(names):
        problems.append(
            f"--gpus {asked} names a GPU twice; for several trainings on each type --parallel {len(names)}"
        )
    if problems:
        raise UsageError(*problems)
    return names
