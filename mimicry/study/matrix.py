"""Which cells a study has: artists by conditions, in each series of adapters.

Every command asks here, so that all mean the same cells by the same filters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mimicry.common.errors import Problems, UsageError
from mimicry.study.cells import CellImages
from mimicry.study.conditions import ChosenConditions, in_order
from mimicry.study.selection import Selection
from mimicry.study.tracker import Bookmarks
from mimicry.study.tree import ALL, NONE, AdapterId, Artist, Condition, StudyTree


@dataclass(frozen=True, kw_only=True)
class CellFilter:
    """The conditions and artists that a command is about; by default all."""

    protections: Sequence[str] = (ALL,)
    countermeasures: Sequence[str] = (ALL,)
    selection: Selection = field(default_factory=Selection)

    def has_condition(self, condition: Condition) -> bool:
        """Return whether the filter lets a condition through."""
        return _is_named(condition.protection, self.protections) and _is_named(
            condition.countermeasure, self.countermeasures
        )


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The cells of a study: all artists in all conditions of all series.

    `series` are folders of adapters, STACK or STACK@VARIANT. `adapters` are all that have a folder or a
    bookmark in these series, whether the filter lets them through or not. `absent` says why a condition has
    no images, for those in which nothing was trained either.
    """

    series: tuple[str, ...]
    conditions: tuple[Condition, ...]
    artists: tuple[Artist, ...]
    adapters: tuple[AdapterId, ...] = ()
    absent: Mapping[Condition, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[AdapterId]:
        for series in self.series:
            for artist in self.artists:
                for condition in self.conditions:
                    yield AdapterId.in_series(series, condition, artist)

    def with_images(self, images: CellImages) -> list[AdapterId]:
        """Return the cells that have images."""
        return [
            cell
            for cell in self
            if cell.condition not in self.absent and images.of(cell.condition, cell.artist) is not None
        ]

    @classmethod
    def choose(
        cls,
        images: CellImages,
        bookmarks: Bookmarks,
        series: Sequence[str],
        chosen: CellFilter | None = None,
        *,
        always: Iterable[Condition] = (),
        least: int = 1,
    ) -> "Matrix":
        """Return the cells that a filter lets through, of what has images, adapters or bookmarks.

        Args:
            always: conditions that belong to it whatever the filter says.
            least: how many originals an artist must have for the pilot, which takes the first such artist of
                each split and style.

        Raises:
            UsageError: names that match nothing, all of them.
            BatchFault: a folder cannot be listed.
        """
        chosen = chosen or CellFilter()
        tree = images.tree
        adapters = {adapter: None for each in series for adapter in tree.adapters(each)}
        adapters |= dict.fromkeys(_with_bookmark(bookmarks, series))
        problems = Problems()
        trained = {condition for each in adapters if chosen.has_condition(condition := each.condition)}
        on_disk = ChosenConditions(())
        with problems:
            on_disk = _conditions_on_disk(tree, chosen, trained)
        conditions = in_order({*on_disk.present, *(pair for pair, _ in on_disk.absent), *trained, *always})
        known = images.artists(conditions) | {each.artist for each in adapters}
        artists: list[Artist] = []
        with problems:
            if not known:
                tree.source(Condition())  # says what is missing, if it is the tree
            artists = chosen.selection.choose(
                sorted(known), lambda artist: len(images.original(artist).names) >= least
            )
        problems.raise_any()
        return cls(
            series=tuple(series),
            conditions=tuple(conditions),
            artists=tuple(artists),
            adapters=tuple(adapters),
            absent={pair: reason for pair, reason in on_disk.absent if pair not in trained},
        )


def _is_named(name: str, names: Sequence[str]) -> bool:
    return ALL in names or name in names


def _with_bookmark(bookmarks: Bookmarks, series: Sequence[str]) -> Iterator[AdapterId]:
    for key in bookmarks:
        name, *parts = key.split("/")
        if name in series and len(parts) == 5:
            protection, countermeasure, *artist = parts
            yield AdapterId.in_series(name, Condition(protection, countermeasure), Artist(*artist))


def _conditions_on_disk(tree: StudyTree, chosen: CellFilter, trained: set[Condition]) -> ChosenConditions:
    """Return the conditions with images; names that only adapters have are no mistake.

    Raises:
        UsageError: names that nothing has.
    """
    gone: set[str] = set()
    for each in trained:
        for alone in (Condition(each.protection), Condition(countermeasure=each.countermeasure)):
            try:
                tree.check_names(alone)
            except UsageError:
                gone |= {alone.protection, alone.countermeasure}
    names = [
        [name for name in given if name == NONE or name not in gone]
        for given in (chosen.protections, chosen.countermeasures)
    ]
    return ChosenConditions.choose(tree, *names, needed=False)
