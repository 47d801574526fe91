"""Selects artists of the study: the filters, the pilot, and an error for names that match nothing."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mimicry.common.errors import UsageError, nearest
from mimicry.study.tree import Artist


@dataclass(frozen=True)
class Selection:
    """The filters of the command line; an empty filter selects everything."""

    splits: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    artists: tuple[str, ...] = ()
    pilot: bool = False

    def choose(self, known: Sequence[Artist], has_enough_images: Callable[[Artist], bool]) -> list[Artist]:
        """Return those of the `known` artists that the filters select, in their order.

        Args:
            has_enough_images: whether an artist has enough original images for the pilot, which takes the
                first such artist of each split and style: the same artists for every condition.

        Raises:
            UsageError: names that match no artist (all of them are listed), or no artist is left.
        """
        spelled = self._as_on_disk(known)
        if spelled != self:
            return spelled.choose(known, has_enough_images)
        problems = [
            *_unmatched("--split", self.splits, {artist.split for artist in known}),
            *_unmatched("--style", self.styles, {artist.style for artist in known}),
            *_unmatched("--artist", self.artists, {artist.name for artist in known}),
        ]
        if problems:
            raise UsageError(*problems)
        candidates = _pilots(known, has_enough_images) if self.pilot else known
        chosen = [artist for artist in candidates if self._matches(artist)]
        if not chosen:
            raise UsageError(self._nothing_left(candidates))
        return chosen

    def _as_on_disk(self, known: Sequence[Artist]) -> "Selection":
        """Return the same filters with the names as the folders spell them: Unicode has two forms of é."""
        return replace(
            self,
            splits=_spelled_as_known(self.splits, {artist.split for artist in known}),
            styles=_spelled_as_known(self.styles, {artist.style for artist in known}),
            artists=_spelled_as_known(self.artists, {artist.name for artist in known}),
        )

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


def _spelled_as_known(names: tuple[str, ...], known: set[str]) -> tuple[str, ...]:
    """Return `names`, with a name that is known only in another Unicode form in that form."""
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


def _unmatched(option: str, names: Iterable[str], known: set[str]) -> list[str]:
    return [
        f"{option} {name} matches no artist; {nearest(name, sorted(known))}"
        for name in names
        if name not in known
    ]
