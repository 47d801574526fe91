"""Pairs the images of a set with the original art, by the names of their files.

Every draw of a training is keyed by the stem of the original. Tools keep its name and put something around
it: Mist and Anti-DreamBooth write 50_noise_NAME.png, Glaze NAME-glazed-intensity-MEDIUM.png.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from mimicry.common.files import sha256_text
from mimicry.common.text import first_few
from mimicry.study.images import ImageFolder, stem_of

SAME_NAME = "same name"
# So many ways of pairing are told in a line.
_SHOWN = 3


@dataclass(frozen=True)
class Pairing:
    """Images that go by the stems of their originals, sorted by them; `original` is None for original art.

    `rules` says for each image that has another name than its original how its name was understood.
    """

    images: ImageFolder
    original: ImageFolder | None = None
    rules: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, images: ImageFolder, original: ImageFolder | None) -> "Pairing":
        """Pair `images` with those of `original`, each with one at most."""
        if original is None or images.path == original.path:
            return cls(images)
        # The common case, ten thousand times; and names that forbid training are reported as they are.
        if images.stems == original.stems or images.problem() is not None:
            return cls(images, original)
        found = _pair(images.stems, original.stems)
        names = dict(zip(images.stems, images.names, strict=True))
        aliases = {names[stem]: pair.original for stem, pair in found.items() if pair.original != stem}
        rules = {names[stem]: pair.affix.rule for stem, pair in found.items() if pair.original != stem}
        return cls(images.with_aliases(aliases), original, rules)

    def without(self, stems: Collection[str]) -> "Pairing":
        """Return the same pairs without the originals that have these stems."""
        if not stems:
            return self
        original = None if self.original is None else self.original.without(stems)
        return replace(self, images=self.images.without(stems), original=original)

    @cached_property
    def _originals(self) -> Mapping[str, str]:
        return {} if self.original is None else {stem_of(name): name for name in self.original.names}

    def partner(self, name: str) -> str | None:
        """Return the file of the original that the image `name` is paired with; None when it has none."""
        return self._originals.get(self.images.stem(name))

    def rule(self, name: str) -> str | None:
        """Return how the image was paired with its original; None when it has none."""
        return None if self.partner(name) is None else self.rules.get(name, SAME_NAME)

    @property
    def lacking(self) -> list[str]:
        """The stems of originals that no image was made from."""
        present = set(self.images.stems)
        return [stem for stem in self._originals if stem not in present]

    @property
    def strangers(self) -> list[str]:
        """The stems of images that were made from no original."""
        if self.original is None:
            return []
        return [stem for stem in self.images.stems if stem not in self._originals]

    @property
    def problem(self) -> str:
        """In what set and originals differ, in words; empty when every one has its partner."""
        if self.original is None or self.images.stems == self.original.stems:
            return ""
        parts = []
        if self.lacking:
            parts.append(f"lacks {first_few(self.lacking)} of original_art")
        if self.strangers:
            parts.append(f"has {first_few(self.strangers)} that original_art has not")
        return " and ".join(parts)

    @property
    def note(self) -> str:
        """How images of other names than their originals' were paired, in words; empty without any."""
        counted = Counter(rule for name, rule in self.rules.items() if name in self.images.names)
        if not counted:
            return ""
        parts = [f"{rule} ({count} of {len(self.images.names)})" for rule, count in counted.most_common()]
        more = f" and {len(parts) - _SHOWN} others" if len(parts) > _SHOWN else ""
        return f"paired with the originals by name, leaving out {', '.join(parts[:_SHOWN])}{more}"


@dataclass(frozen=True, order=True)
class _Affix:
    prefix: str
    suffix: str

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)

    @property
    def rule(self) -> str:
        named = (("prefix", self.prefix), ("suffix", self.suffix))
        return " and ".join(f"{what} {text!r}" for what, text in named if text)

    @property
    def ends_at_a_word(self) -> bool:
        """Whether no letter or digit touches the name: in 50_noise_1 the name may be 1, in 11 it is not."""
        before, after = self.prefix[-1:], self.suffix[:1]
        return not (before.isalnum() or after.isalnum())


@dataclass(frozen=True)
class _Pair:
    original: str
    affix: _Affix


def _pair(stems: list[str], originals: list[str]) -> dict[str, _Pair]:
    """Return the original of each stem that has one; no original is given twice."""
    found = {stem: _Pair(stem, _Affix("", "")) for stem in set(stems) & set(originals)}
    left, free = set(stems) - found.keys(), set(originals) - found.keys()
    everything = not found and len(left) == len(free) > 1
    while left and free:
        readings = {(stem, pair) for stem in left for pair in _readings(stem, free)}
        best = _most_common(readings, len(left) if everything else None)
        if best is None:
            break
        for stem, pair in readings:
            if pair.affix == best:
                found[stem] = pair
                left.discard(stem)
                free.discard(pair.original)
    return found


def _readings(stem: str, originals: Collection[str]) -> Iterator[_Pair]:
    """Yield every way in which the name of an original stands within `stem`."""
    for original in originals:
        start = stem.find(original)
        while start >= 0:
            yield _Pair(original, _Affix(stem[:start], stem[start + len(original) :]))
            start = stem.find(original, start + 1)


def _most_common(readings: Collection[tuple[str, _Pair]], whole_set: int | None) -> _Affix | None:
    """Return the affix that most names share, the shortest of several; None when one would have to guess."""
    counted = Counter(pair.affix for _, pair in readings)
    counted = Counter(
        {affix: count for affix, count in counted.items() if affix.ends_at_a_word or count == whole_set}
    )
    if not counted:
        return None
    most = max(counted.values())
    best, *others = sorted(
        (affix for affix, count in counted.items() if count == most), key=lambda affix: (len(affix), affix)
    )
    chosen = {stem: pair.original for stem, pair in readings if pair.affix == best}
    for stem, pair in readings:
        # 50_noise_boat_2 holds boat too, which boat_2 explains; but 50_noise_1 may be of 50 or of 1.
        if pair.affix in others and stem in chosen and pair.original not in chosen[stem]:
            return None
    return best


class EvaluatedOn(StrEnum):
    """What an evaluation loss is measured on: paintings that are trained on, or not, or nobody can tell."""

    HELD_OUT = "held-out"
    IN_SAMPLE = "in-sample"
    UNKNOWN = "unknown"


def held_out(stems: Iterable[str], count: int) -> tuple[str, ...]:
    """Return `count` of the stems of an artist's original art, sorted; all where there are fewer."""
    return tuple(sorted(sorted(set(stems), key=sha256_text)[:count])) if count else ()


def training_set(
    images: ImageFolder, original: ImageFolder, left_out: Collection[str], hold_out: int
) -> Pairing:
    """Pair an artist's images with the whole `original` art, and return what is trained on.

    Without the stems that are `left_out` as bad, and the `hold_out` originals that are held out.
    """
    held = held_out(original.without(left_out).stems, hold_out)
    return Pairing.of(images, original).without({*left_out, *held})


def hold_out_problem(original: ImageFolder, images: ImageFolder, count: int) -> str | None:
    """Return why one cannot train on `images` with `count` of `original` held out; None if one can."""
    if not count:
        return None
    known = len(original.names)
    if not known:
        return (
            f"--hold-out {count} takes its paintings from the original art, and there is no image in "
            f"{original.path}; put it there, or type --hold-out 0 for the whole study"
        )
    if known <= count:
        return (
            f"--hold-out {count} leaves no image to train on, of {known} in {original.path}; at least one "
            f"must stay: type at most {known - 1} for the whole study, or leave this artist out"
        )
    if not images.names:
        return (
            f"--hold-out {count} leaves no image to train on: all in {images.path} are of paintings that are "
            f"held out; complete the set"
        )
    return None
