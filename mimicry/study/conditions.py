"""Which conditions a call is about: names, or `all` that have images; and the order that a reader expects."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from mimicry.common.errors import Problems, UsageError
from mimicry.study.tree import ALL, NONE, Condition, Source, StudyTree, folders_in

_AMBIGUOUS = (
    "{root} does not say which protection its images were made from; name it with --protection, or arrange "
    "them as {root}/{protection}/SPLIT/STYLE/ARTIST"
)


@dataclass(frozen=True)
class ChosenConditions:
    """The product of protections and countermeasures.

    `present` are the conditions that have a folder of images. `absent` says why others have none, by
    condition: only pairs of which `all` gave a name, or a list of the study's file.
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

        Args:
            needed: whether a pair of two names must have images. A pair with a name that `all` gave need not.

        Raises:
            UsageError: all that is wrong with the names; pairs that are needed and have no images.
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


def in_order(conditions: Iterable[Condition]) -> list[Condition]:
    """Return each of the conditions once: unprotected first, each protection before its countered ones."""
    return sorted(set(conditions), key=condition_order)


def condition_order(condition: Condition) -> tuple[bool, str, bool, str]:
    """Return the key by which conditions are sorted: unprotected first, each before its countered ones."""
    protection, countermeasure = condition.protection, condition.countermeasure
    return protection != NONE, protection, countermeasure != NONE, countermeasure


def _spelled_out(names: Sequence[str], present: Sequence[str]) -> list[str]:
    """Return the names, with those of all folders in the place of `all`."""
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
    """Return why nobody can tell whether images are those of a condition that no name was typed for."""
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
