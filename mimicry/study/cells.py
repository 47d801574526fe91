"""The images of the cells of a study: a cell is one artist in one condition, in one series."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.common.files import canonical_json, sha256_text
from mimicry.study.hold_out import held_out
from mimicry.study.images import ImageFolder
from mimicry.study.pairing import Pairing
from mimicry.study.quarantine import left_out
from mimicry.study.tree import Artist, Condition, Source, StudyTree


@dataclass(frozen=True)
class Listing:
    """The images of a cell as their files state them: name, size in bytes and stem of each.

    `fingerprint` changes when one of them is replaced or written to.
    """

    records: list[dict[str, Any]]
    fingerprint: str

    @classmethod
    def read(cls, images: ImageFolder) -> "Listing":
        """List `images`; nothing but the system's table of files is read.

        Raises:
            OSError: an image is gone.
        """
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
        """Return what a cell is trained on, without what is in quarantine; None when there are no images.

        A folder that cannot be listed is returned: that it has no images is not known.

        Args:
            hold_out: how many paintings are held out of training, and not returned.
        """
        cell = (condition, artist, hold_out)
        if cell not in self._pairings:
            whole = self.whole(condition, artist)
            held = self.held_out(artist, hold_out)
            self._pairings[cell] = None if whole is None else whole.without(held)
        return self._pairings[cell]

    def listing(self, condition: Condition, artist: Artist, hold_out: int = 0) -> Listing | None:
        """List what a cell is trained on; None without images, or when one is gone.

        Several adapters may be compared with it: those of a study with replicates are. For `hold_out` see
        `of`.
        """
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
