"""Decoding many images to see whether they can be trained on, and remembering those that can.

A check of a whole study decodes tens of thousands of images, and the next call asks the same. What was found
good is remembered by name, size and time of change; what was found bad is decoded again each time.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.environment import processor_count
from mimicry.common.errors import TrainingFailed
from mimicry.common.file_memory import FileMemory
from mimicry.study.images import ImageFolder, ImageRecord, check_image

# Decoding a large scan needs a gigabyte.
MOST_THREADS = 8

# Is told how many images are done, of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be trained on.

    `lasting` is False when the file could not be read, which may be due to the disk or to permissions.
    """

    path: Path
    problem: str
    lasting: bool


def bad_images(
    folders: Iterable[ImageFolder], progress: Progress | None = None, *, anew: bool = False
) -> list[BadImage]:
    """Decode the images of `folders`, several at a time, and return the bad ones in order.

    Args:
        anew: decode those too that were found good before.
    """
    memories = [(FileMemory("images", folder.path), folder) for folder in folders]
    todo = [
        (memory, path)
        for memory, folder in memories
        for path in folder.paths
        if anew or not memory.knows(path.name, _facts(path))
    ]
    bad = []
    pool = ThreadPoolExecutor(min(MOST_THREADS, processor_count()))
    try:
        for number, found in enumerate(pool.map(lambda item: _check(*item), todo), start=1):
            if found is not None:
                bad.append(found)
            if progress is not None:
                progress(number, len(todo))
    finally:
        # A stop signal does not wait for thousands of images.
        pool.shutdown(cancel_futures=True)
        for memory, _ in memories:
            memory.save()
    return bad


def refuse_changed_images(images: ImageFolder, records: Sequence[ImageRecord]) -> None:
    """Make sure that the images are still those that a training began with.

    Raises:
        TrainingFailed: some were changed or removed, so that nobody knows what it was trained on.
    """
    changed = images.changed_since(records)
    if changed:
        shown = ", ".join(map(repr, changed[:3])) + (
            f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        )
        raise TrainingFailed(
            f"images were changed while it was trained on them: {shown}; nothing is published, and the same "
            f"command trains on what is there now"
        )


def _check(memory: FileMemory, path: Path) -> BadImage | None:
    facts = _facts(path)
    try:
        check_image(path)
    except OSError as error:
        return BadImage(path, error.strerror or str(error), lasting=error.errno is None)
    # One that was changed meanwhile is not remembered.
    if facts is not None and _facts(path) == facts:
        memory.keep(path.name, facts)
    return None


def _facts(path: Path) -> list[int] | None:
    """Return size and time of change; None when there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
