"""Which artists of the study a call is about: the filters, the pilot, and names that match nothing."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from mimicry.common.errors import UsageError, nearest
from mimicry.study.tree import Artist


@dataclass(frozen=True)
class Selection:
    """The filters of the command line; an empty one lets all through."""

    splits: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    artists: tuple[str, ...] = ()
    pilot: bool = False

    def choose(self, known: Sequence[Artist], has_enough_images: Callable[[Artist], bool]) -> list[Artist]:
        """Return the chosen ones of the `known` artists, in their order.

        Args:
            has_enough_images: says whether an artist's original images suffice for the pilot, which takes
                the first such artist of each split and style: the same artists for every condition.

        Raises:
            UsageError: a name that matches no artist, every such name; or nothing is left.
        """
        asked = self._as_on_disk(known)
        if asked != self:
            return asked.choose(known, has_enough_images)
        problems = [
            *_unmatched("--split", self.splits, {artist.split for artist in known}),
            *_unmatched("--style", self.styles, {artist.style for artist in known}),
            *_unmatched("--artist", self.artists, {artist.name for artist in known}),
        ]
        if problems:
            raise UsageError(*problems)
        candidates = _pilots(known, has_enough_images) if self.pilot else known
        chosen = [artist for artist in candidates if self._lets_through(artist)]
        if not chosen:
            raise UsageError(self._nothing_left(candidates))
        return chosen

    def _as_on_disk(self, known: Sequence[Artist]) -> "Selection":
        """Return the same filters with names as the folders spell them: an accent has two forms."""
        return replace(
            self,
            splits=_spelt(self.splits, {artist.split for artist in known}),
            styles=_spelt(self.styles, {artist.style for artist in known}),
            artists=_spelt(self.artists, {artist.name for artist in known}),
        )

    def _lets_through(self, artist: Artist) -> bool:
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
        return f"no artist is left by the filters together; {what} {shown}; leave one of the filters out"


def _spelt(names: tuple[str, ...], known: set[str]) -> tuple[str, ...]:
    """Return `names` with each that is unknown, but known in another normal form, in that form."""
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
