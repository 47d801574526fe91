"""Which cells a study has, for every command: artists by conditions, in each series of adapters."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from mimicry.common.errors import Problems, UsageError, nearest
from mimicry.study.cells import CellImages
from mimicry.study.tracker import Bookmarks
from mimicry.study.tree import ALL, NONE, AdapterId, Artist, Condition, Source, StudyTree, folders_in

_AMBIGUOUS = (
    "{root} does not say which protection its images were made from; name it with --protection, or arrange "
    "them as {root}/{protection}/SPLIT/STYLE/ARTIST"
)


@dataclass(frozen=True)
class Selection:
    """The filters of the command line; an empty filter selects everything."""

    splits: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    artists: tuple[str, ...] = ()
    pilot: bool = False

    def choose(self, known: Sequence[Artist], has_enough_images: Callable[[Artist], bool]) -> list[Artist]:
        """Return those of the `known` artists that the filters select, in order, or raise UsageError.

        The pilot takes the first artist with enough original images of each split and style, in every
        condition.
        """
        names = {
            "splits": {artist.split for artist in known},
            "styles": {artist.style for artist in known},
            "artists": {artist.name for artist in known},
        }
        spelled = replace(
            self,
            splits=_spelled_as_known(self.splits, names["splits"]),
            styles=_spelled_as_known(self.styles, names["styles"]),
            artists=_spelled_as_known(self.artists, names["artists"]),
        )
        if spelled != self:
            return spelled.choose(known, has_enough_images)
        problems = [
            f"--{part[:-1]} {name} matches no artist; {nearest(name, sorted(names[part]))}"
            for part in names
            for name in getattr(self, part)
            if name not in names[part]
        ]
        if problems:
            raise UsageError(*problems)
        candidates = _pilots(known, has_enough_images) if self.pilot else known
        chosen = [artist for artist in candidates if self._matches(artist)]
        if not chosen:
            raise UsageError(self._nothing_left(candidates))
        return chosen

    def _matches(self, artist: Artist) -> bool:
        return (
            (not self.splits or artist.split in self.splits)
            and (not self.styles or artist.style in self.styles)
            and (not self.artists or artist.name in self.artists)
        )

    def _nothing_left(self, candidates: Sequence[Artist]) -> str:
        if not candidates and not self.pilot:
            return "there is no artist: put images at original_art/SPLIT/STYLE/ARTIST below --data-root"
        what = "--pilot picks" if self.pilot else "there is"
        shown = ", ".join(map(str, candidates[:12])) or "nobody"
        return f"no artist matches all filters together; {what} {shown}; leave one of the filters out"


@dataclass(frozen=True)
class ChosenConditions:
    """The product of protections and countermeasures: those that are `present` as a folder of images.

    `absent` says why others have none: pairs of which `all` or a list of the study's file gave a name.
    """

    present: tuple[Condition, ...]
    absent: tuple[tuple[Condition, str], ...] = ()
    _needed: frozenset[Condition] = frozenset()

    def needs(self, condition: Condition) -> bool:
        """Return whether every artist must have images of a condition: both of its names were typed."""
        return condition in self._needed

    @classmethod
    def choose(
        cls,
        tree: StudyTree,
        protections: Sequence[str] = (ALL,),
        countermeasures: Sequence[str] = (ALL,),
        *,
        needed: bool = True,
    ) -> "ChosenConditions":
        """Return the product of the names, in the order that a reader expects.

        With `needed`, a pair of two names must have images; one with a name that `all` gave need not. A
        UsageError has all that is wrong with the names.
        """
        _check_names(tree, protections, countermeasures)
        problems = Problems()
        present: list[Condition] = []
        absent: list[tuple[Condition, str]] = []
        typed: set[Condition] = set()
        pairs = product(
            _spelled_out(protections, folders_in(tree.protected_art)),
            _spelled_out(countermeasures, folders_in(tree.robust_samples)),
        )
        for pair in in_order(Condition(*names) for names in pairs):
            named = pair.protection in protections
            if needed and named and pair.countermeasure in countermeasures:
                typed.add(pair)
            try:
                reason = _ambiguity(tree, tree.source(pair), pair, named=named)
            except UsageError as error:
                reason = str(error)
                if pair in typed:
                    with problems:
                        raise UsageError(reason + _advice(protections, countermeasures)) from error
            if reason:
                absent.append((pair, reason))
            else:
                present.append(pair)
        problems.raise_any()
        if needed:
            _refuse_names_without_images(protections, countermeasures, present, absent)
        return cls(tuple(present), tuple(absent), frozenset(typed))


@dataclass(frozen=True, kw_only=True)
class CellFilter:
    """The conditions and artists that a command is about; by default all."""

    protections: Sequence[str] = (ALL,)
    countermeasures: Sequence[str] = (ALL,)
    selection: Selection = field(default_factory=Selection)

    def has_condition(self, condition: Condition) -> bool:
        return _is_named(condition.protection, self.protections) and _is_named(
            condition.countermeasure, self.countermeasures
        )


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The cells of a study: all artists in all conditions of all series, STACK or STACK@VARIANT.

    `adapters` are all with a folder or a bookmark in these series, whether the filter lets them through or
    not. `absent` says why a condition has no images, for those in which nothing was trained either.
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
            least: how many originals an artist must have for the pilot.

        Raises:
            UsageError: names that match nothing, all of them.
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
    """Return the conditions with images; names that only adapters have are no mistake."""
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


def in_order(conditions: Iterable[Condition]) -> list[Condition]:
    """Return each of the conditions once: unprotected first, each protection before its countered ones."""
    return sorted(set(conditions), key=condition_order)


def condition_order(condition: Condition) -> tuple[bool, str, bool, str]:
    protection, countermeasure = condition.protection, condition.countermeasure
    return protection != NONE, protection, countermeasure != NONE, countermeasure


def _spelled_out(names: Sequence[str], present: Sequence[str]) -> list[str]:
    every = [name for one in names for name in ((NONE, *present) if one == ALL else (one,))]
    return list(dict.fromkeys(every))


def _check_names(tree: StudyTree, protections: Sequence[str], countermeasures: Sequence[str]) -> None:
    problems = Problems()
    checked = [Condition(protection=name) for name in protections if name != ALL]
    checked += [Condition(countermeasure=name) for name in countermeasures if name != ALL]
    for condition in checked:
        with problems:
            tree.check_names(condition)
    problems.raise_any()


def _advice(protections: Sequence[str], countermeasures: Sequence[str]) -> str:
    if len(protections) * len(countermeasures) == 1:
        return ""
    return "; of several names, `all` in the place of some takes the pairs that have images"


def _ambiguity(tree: StudyTree, source: Source, condition: Condition, *, named: bool) -> str:
    if source.names_protection or named or folders_in(tree.protected_art) == [condition.protection]:
        return ""
    return _AMBIGUOUS.format(root=source.root, protection=condition.protection)


def _refuse_names_without_images(
    protections: Sequence[str],
    countermeasures: Sequence[str],
    present: Sequence[Condition],
    absent: Sequence[tuple[Condition, str]],
) -> None:
    """Refuse names that somebody typed and that no pair has images of, each with one reason."""
    reasons = []
    for names, part in ((protections, "protection"), (countermeasures, "countermeasure")):
        for name in names:
            if name != ALL and not any(getattr(pair, part) == name for pair in present):
                reasons += [reason for pair, reason in absent if getattr(pair, part) == name][:1]
    if reasons:
        raise UsageError(*dict.fromkeys(reasons))


def _spelled_as_known(names: tuple[str, ...], known: set[str]) -> tuple[str, ...]:
    others = {unicodedata.normalize("NFC", name): name for name in sorted(known)}
    return tuple(
        name if name in known else others.get(unicodedata.normalize("NFC", name), name) for name in names
    )


def _pilots(known: Iterable[Artist], has_enough_images: Callable[[Artist], bool]) -> list[Artist]:
    first: dict[tuple[str, str], Artist] = {}
    for artist in sorted(known):
        place = (artist.split, artist.style)
        if place not in first and has_enough_images(artist):
            first[place] = artist
    return list(first.values())
