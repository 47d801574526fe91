"""Images that are left out of all conditions because they are bad in one: progress/quarantine.json.

Two adapters of an artist may differ in what a condition did to the images, but not in which images were used.
So a painting whose copy is damaged in one condition is left out of every condition, by its stem. The files
stay where they are. To use an image again, repair it and remove its entry.

    {"images": {"historical/baroque/Anna_Berg": {"03_hills": {"file": ..., "problem": ..., "since": ...}}}}
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mimicry.common.errors import BatchFault
from mimicry.common.files import read_json, utc_now, write_json
from mimicry.study.image_checks import BadImage
from mimicry.study.tree import Artist, StudyTree

_IMAGES = "images"
_LOCK_TIMEOUT_SECONDS = 60.0


def left_out(tree: StudyTree) -> dict[str, frozenset[str]]:
    """Return the stems that are left out, by artist as split/style/name.

    Raises:
        BatchFault: the file cannot be read. Without it, conditions would be trained on different paintings.
    """
    return {artist: frozenset(stems) for artist, stems in _read(tree)[_IMAGES].items()}


def leave_out(tree: StudyTree, bad: Iterable[tuple[Artist, BadImage]]) -> None:
    """Add images. Entries that exist already stay as they are.

    Raises:
        BatchFault: the file cannot be read or written.
    """
    from filelock import FileLock, Timeout  # imported late: it is slow and rarely needed

    path = tree.quarantine
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_SECONDS):
            content = _read(tree)
            for artist, image in bad:
                stems = content[_IMAGES].setdefault(str(artist), {})
                stems.setdefault(image.stem, _entry(tree, image))
            write_json(path, content)
    except Timeout as error:
        raise BatchFault(f"{path} is locked by another process; run the same command again") from error
    except OSError as error:
        raise BatchFault(
            f"{path} cannot be written: {error.strerror}; get write permission for it"
        ) from error


def _entry(tree: StudyTree, image: BadImage) -> dict[str, str]:
    file = image.path.relative_to(tree.data_root).as_posix()
    return {"file": file, "problem": image.problem.replace(str(image.path), "it"), "since": utc_now()}


def _read(tree: StudyTree) -> dict[str, Any]:
    path = tree.quarantine
    try:
        content = read_json(path)
        if not isinstance(content[_IMAGES], Mapping) or not all(
            isinstance(stems, Mapping) for stems in content[_IMAGES].values()
        ):
            raise TypeError(_IMAGES)  # noqa: TRY301
    except FileNotFoundError:
        return {_IMAGES: {}}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BatchFault(
            f"{path} cannot be used ({type(error).__name__}): it says which images are left out of all "
            f"conditions; repair it, or move it away to use all images"
        ) from error
    known: dict[str, Any] = content
    return known
