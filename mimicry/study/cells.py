"""The images of the cells of a study: a cell is one artist in one condition, in one series."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mimicry.common.errors import BatchFault, UsageError
from mimicry.common.files import canonical_json, read_json, sha256_text, utc_now, write_json
from mimicry.study.image_checks import BadImage
from mimicry.study.images import ImageFolder
from mimicry.study.pairing import Pairing, held_out
from mimicry.study.tree import Artist, Condition, Source, StudyTree


@dataclass(frozen=True)
class Listing:
    """The name, size in bytes and stem of each image of a cell; `fingerprint` changes when a file does."""

    records: list[dict[str, Any]]
    fingerprint: str

    @classmethod
    def read(cls, images: ImageFolder) -> "Listing":
        """List `images` by the system's table of files; OSError where one is gone."""
        folder = os.fspath(images.path)
        records, changes = [], []
        # Ten thousands of images: a Path for each takes longer than the system does.
        for name in images.names:
            status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
            records.append({"name": name, "size": status.st_size, "stem": images.stem(name)})
            changes.append([name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
        return cls(records, sha256_text(canonical_json(changes)))


class CellImages:
    """The images of cells, as they are when they are first asked for. Each folder is listed once."""

    def __init__(self, tree: StudyTree) -> None:
        self.tree = tree
        self._sources: dict[Condition, Source | None] = {}
        self._whole: dict[tuple[Condition, Artist], Pairing | None] = {}
        self._pairings: dict[tuple[Condition, Artist, int], Pairing | None] = {}
        self._listings: dict[tuple[Condition, Artist, int], Listing | None] = {}
        self._originals: dict[Artist, ImageFolder] = {}

    def source(self, condition: Condition) -> Source | None:
        """Return where the images of a condition lie; None when there is no such folder."""
        if condition not in self._sources:
            try:
                self._sources[condition] = self.tree.source(condition)
            except UsageError:
                self._sources[condition] = None
        return self._sources[condition]

    def original(self, artist: Artist) -> ImageFolder:
        """Return an artist's original art, without what is in quarantine."""
        return self._original(artist).without(self.left_out(artist))

    def left_out(self, artist: Artist) -> frozenset[str]:
        """Return the stems that are in quarantine, and so left out of all conditions of an artist."""
        return self._quarantine.get(str(artist), frozenset())

    def held_out(self, artist: Artist, count: int) -> tuple[str, ...]:
        """Return the stems of the `count` paintings of an artist that --hold-out keeps out of training."""
        return held_out(self.original(artist).stems, count)

    def whole(self, condition: Condition, artist: Artist) -> Pairing | None:
        """Return an artist's images in a condition, held-out paintings included; else as `of`."""
        cell = (condition, artist)
        if cell not in self._whole:
            self._whole[cell] = self._read(condition, artist)
        return self._whole[cell]

    def of(self, condition: Condition, artist: Artist, hold_out: int = 0) -> Pairing | None:
        """Return what a cell is trained on, without quarantine and `hold_out` paintings; None without images.

        A folder that cannot be listed is returned: that it has no images is not known.
        """
        cell = (condition, artist, hold_out)
        if cell not in self._pairings:
            whole = self.whole(condition, artist)
            held = self.held_out(artist, hold_out)
            self._pairings[cell] = None if whole is None else whole.without(held)
        return self._pairings[cell]

    def listing(self, condition: Condition, artist: Artist, hold_out: int = 0) -> Listing | None:
        """List what a cell is trained on; None without images, or when one is gone."""
        cell = (condition, artist, hold_out)
        if cell not in self._listings:
            pairing = self.of(*cell)
            try:
                self._listings[cell] = None if pairing is None else Listing.read(pairing.images)
            except OSError:
                self._listings[cell] = None
        return self._listings[cell]

    def artists(self, conditions: Iterable[Condition]) -> set[Artist]:
        """Return those who have a folder in one of the conditions, or in the original art."""
        roots = {source.root for each in conditions if (source := self.source(each)) is not None}
        return {artist for root in roots | {self.tree.original_art} for artist in self.tree.artists(root)}

    def _read(self, condition: Condition, artist: Artist) -> Pairing | None:
        source = self.source(condition)
        if source is None:
            return None
        original = self._original(artist)
        path = self.tree.images_of(source.root, artist)
        images = original if path == original.path else ImageFolder.read(path)
        if not images.names and not images.fault:
            return None
        return Pairing.of(images, original).without(self.left_out(artist))

    def _original(self, artist: Artist) -> ImageFolder:
        if artist not in self._originals:
            folder = self.tree.images_of(self.tree.original_art, artist)
            self._originals[artist] = ImageFolder.read(folder)
        return self._originals[artist]

    @cached_property
    def _quarantine(self) -> dict[str, frozenset[str]]:
        return left_out(self.tree)


_IMAGES = "images"
_LOCK_TIMEOUT_SECONDS = 60.0


def left_out(tree: StudyTree) -> dict[str, frozenset[str]]:
    """Return the stems that are left out, by artist as split/style/name.

    BatchFault without the file: conditions would be trained on different paintings.
    """
    return {artist: frozenset(stems) for artist, stems in _read(tree)[_IMAGES].items()}


def leave_out(tree: StudyTree, bad: Iterable[tuple[Artist, BadImage]]) -> None:
    """Add images; entries that exist stay. BatchFault where the file cannot be read or written."""
    from filelock import FileLock, Timeout  # imported late: it is slow and rarely needed

    path = tree.quarantine
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_TIMEOUT_SECONDS):
            content = _read(tree)
            for artist, image in bad:
                stems = content[_IMAGES].setdefault(str(artist), {})
                file = image.path.relative_to(tree.data_root).as_posix()
                problem = image.problem.replace(str(image.path), "it")
                stems.setdefault(image.stem, {"file": file, "problem": problem, "since": utc_now()})
            write_json(path, content)
    except Timeout as error:
        raise BatchFault(f"{path} is locked by another process; run the same command again") from error
    except OSError as error:
        raise BatchFault(
            f"{path} cannot be written: {error.strerror}; get write permission for it"
        ) from error


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
