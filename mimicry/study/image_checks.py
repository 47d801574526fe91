"""Decodes many images to see whether they can be trained on, and remembers those that can.

A check of a whole study decodes tens of thousands of images, and the next call would check the same ones
again. Good images are remembered by name, size and modification time; bad ones are decoded again each time.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mimicry.common.environment import processor_count
from mimicry.common.errors import TrainingFailed
from mimicry.common.file_memory import FileMemory
from mimicry.common.text import first_few
from mimicry.study.images import ImageFolder, ImageRecord, check_image

# Decoding a large scan needs a gigabyte.
MOST_THREADS = 8

# Called with the number of images that are done, and the number of all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be trained on.

    `lasting` is False if the file could not be read, which may be due to the disk or to permissions.
    """

    path: Path
    problem: str
    lasting: bool


def bad_images(
    folders: Iterable[ImageFolder], progress: Progress | None = None, *, anew: bool = False
) -> list[BadImage]:
    """Decode the images of `folders`, several at a time, and return the bad ones in order.

    Args:
        anew: also decode images that were found good before.
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
        # Do not make a stop signal wait for thousands of images.
        pool.shutdown(cancel_futures=True)
        for memory, _ in memories:
            memory.save()
    return bad


def refuse_changed_images(images: ImageFolder, records: Sequence[ImageRecord]) -> None:
    """Check that the images are still those that a training began with.

    Raises:
        TrainingFailed: some were changed or removed, so that it is not known what it was trained on.
    """
    changed = images.changed_since(records)
    if changed:
        raise TrainingFailed(
            f"images were changed while it was trained on them: {first_few(changed)}; nothing is "
            f"published, and the same command trains on what is there now"
        )


def _check(memory: FileMemory, path: Path) -> BadImage | None:
    facts = _facts(path)
    try:
        check_image(path)
    except OSError as error:
        return BadImage(path, error.strerror or str(error), lasting=error.errno is None)
    # Not if the file was changed meanwhile.
    if facts is not None and _facts(path) == facts:
        memory.keep(path.name, facts)
    return None


def _facts(path: Path) -> list[int] | None:
    """Return size and modification time; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
