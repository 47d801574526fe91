"""The cells of a study, one for each condition and artist, and the images of each."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.study.captions import image_records
from mimicry.study.conditions import ChosenConditions, in_order
from mimicry.study.hold_out import training_set
from mimicry.study.images import ImageFolder
from mimicry.study.pairing import Pairing
from mimicry.study.quarantine import left_out
from mimicry.study.selection import Selection
from mimicry.study.tree import ALL, AdapterId, Artist, Condition, Source, StudyTree, folders_in


class CellImages:
    """The images of cells, as they are when they are first asked for. Each folder is listed once."""

    def __init__(self, tree: StudyTree) -> None:
        self.tree = tree
        self._sources: dict[Condition, Source | None] = {}
        self._pairings: dict[tuple[Condition, Artist, int], Pairing | None] = {}
        self._listed: dict[tuple[Condition, Artist, int], list[dict[str, Any]] | None] = {}
        self._originals: dict[Artist, ImageFolder] = {}

    def source(self, condition: Condition) -> Source | None:
        """Return where the images of a condition lie; None when there is no such folder."""
        if condition not in self._sources:
            try:
                self._sources[condition] = self.tree.source(condition)
            except UsageError:
                self._sources[condition] = None
        return self._sources[condition]

    def of(self, condition: Condition, artist: Artist, hold_out: int = 0) -> Pairing | None:
        """Return an artist's images in a condition, without those in quarantine; None when there are none.

        A folder that cannot be listed is returned: that it has no images is not known.

        Args:
            hold_out: how many paintings are held out of training, and not returned.
        """
        cell = (condition, artist, hold_out)
        if cell not in self._pairings:
            self._pairings[cell] = self._read(*cell)
        return self._pairings[cell]

    def listed(self, condition: Condition, artist: Artist, hold_out: int = 0) -> list[dict[str, Any]] | None:
        """Return name, size in bytes and stem of each image; None without images, or when one is gone.

        Several adapters may be compared with them: those of a study with replicates are. For `hold_out` see
        `of`.
        """
        cell = (condition, artist, hold_out)
        if cell not in self._listed:
            pairing = self.of(*cell)
            self._listed[cell] = None
            if pairing is not None:
                with suppress(OSError):
                    self._listed[cell] = image_records(pairing.images, None, hashed=False)
        return self._listed[cell]

    def artists(self, conditions: Iterable[Condition]) -> set[Artist]:
        """Return those who have a folder in one of the conditions, or in the original art."""
        roots = {source.root for each in conditions if (source := self.source(each)) is not None}
        return {artist for root in roots | {self.tree.original_art} for artist in self.tree.artists(root)}

    def _read(self, condition: Condition, artist: Artist, hold_out: int) -> Pairing | None:
        source = self.source(condition)
        if source is None:
            return None
        original = self._original(artist)
        path = self.tree.images_of(source.root, artist)
        images = original if path == original.path else ImageFolder.read(path)
        if not images.names and not images.fault:
            return None
        left = self._left_out.get(str(artist), frozenset[str]())
        return training_set(images, original, left, hold_out)

    def _original(self, artist: Artist) -> ImageFolder:
        if artist not in self._originals:
            folder = self.tree.images_of(self.tree.original_art, artist)
            self._originals[artist] = ImageFolder.read(folder)
        return self._originals[artist]

    @cached_property
    def _left_out(self) -> dict[str, frozenset[str]]:
        return left_out(self.tree)


def conditions_of_adapters(tree: StudyTree, series: str) -> set[Condition]:
    """Return the conditions that have a folder of adapters in a series."""
    found = map(Condition.parse, folders_in(tree.lora / series))
    return {condition for condition in found if condition is not None}


def keys_with_images(
    tree: StudyTree,
    series: Iterable[str],
    *,
    protections: Sequence[str] = (ALL,),
    countermeasures: Sequence[str] = (ALL,),
    selection: Selection | None = None,
) -> set[str]:
    """Return the keys of all cells of these series that have images.

    Raises:
        UsageError: names that match nothing.
        BatchFault: a folder cannot be listed, or the file of the quarantine cannot be read.
    """
    images = CellImages(tree)
    present = ChosenConditions.choose(tree, protections, countermeasures, needed=False).present
    found: set[str] = set()
    for name in series:
        trained = {
            condition
            for condition in conditions_of_adapters(tree, name)
            if is_named(condition, protections, countermeasures)
        }
        conditions = in_order({*present, *trained})
        artists = (selection or Selection()).choose(
            sorted(images.artists(conditions)), lambda artist: images.of(Condition(), artist) is not None
        )
        found |= {
            AdapterId.in_series(name, condition, artist).key
            for artist in artists
            for condition in conditions
            if images.of(condition, artist) is not None
        }
    return found


def is_named(condition: Condition, protections: Sequence[str], countermeasures: Sequence[str]) -> bool:
    """Return whether the names mean a condition; `all` means every one."""
    return (ALL in protections or condition.protection in protections) and (
        ALL in countermeasures or condition.countermeasure in countermeasures
    )
