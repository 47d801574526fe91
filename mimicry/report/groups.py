"""Sorts the adapters of a study into groups that may be compared: one recipe, in one or several seeds.

A series is a stack, or a variant of it. Series whose recipes differ in the seed alone are replicates, and
make one group. A variant of another recipe is a group of its own, which is shown apart and never averaged
with others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mimicry.common.files import canonical_json
from mimicry.report.rows import AdapterRow
from mimicry.study import Artist, Condition, in_order
from mimicry.tuning.adapters import recipe_differences


@dataclass(frozen=True, kw_only=True)
class Series:
    """The adapters of a stack or of a variant. `seed` is that of most of them, None where none is known."""

    name: str
    seed: int | None
    rows: tuple[AdapterRow, ...]

    @cached_property
    def by_place(self) -> dict[tuple[Artist, Condition], AdapterRow]:
        return {(row.adapter.artist, row.adapter.condition): row for row in self.rows}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Series of one recipe. `usual` is an adapter of that recipe, None where no recipe is known."""

    series: tuple[Series, ...]
    usual: AdapterRow | None

    @property
    def name(self) -> str:
        return ", ".join(one.name for one in self.series)

    @property
    def rows(self) -> list[AdapterRow]:
        return [row for one in self.series for row in one.rows]

    @property
    def artists(self) -> list[Artist]:
        return sorted({row.adapter.artist for row in self.rows})

    @property
    def conditions(self) -> list[Condition]:
        return in_order(row.adapter.condition for row in self.rows)

    @property
    def seeds(self) -> list[int]:
        return [one.seed for one in self.series if one.seed is not None]

    def other_recipe(self, row: AdapterRow) -> str:
        """Say in what the recipe of an adapter differs from that of its group; empty where it does not."""
        if not row.is_there or self.usual is None:
            return ""
        return recipe_changes(self.usual, row)

    def other_seed(self, series: Series, row: AdapterRow) -> str:
        """Say that an adapter has another seed than its series; empty where it has not."""
        if row.seed is None or row.seed == series.seed:
            return ""
        return f"seed {row.seed} where the others have {series.seed}"


def recipe_changes(usual: AdapterRow, row: AdapterRow) -> str:
    """Say in words in what two recipes differ, the seed left out; empty where they do not."""
    if usual.recipe == row.recipe:
        return ""
    if usual.recipe is None or row.recipe is None:
        return "recipe not known"
    words = recipe_differences(usual.recipe, row.recipe)
    if usual.recipe["class_images"] != row.recipe["class_images"]:
        words.append("other class images")
    return ", ".join(words)


def group_rows(rows: Sequence[AdapterRow]) -> list[Group]:
    """Return the groups, that of the first series first.

    A series that repeats the seed of an earlier one is not a replicate: it is a group of its own.
    """
    names = list(dict.fromkeys(row.adapter.series for row in rows))
    members: dict[str, list[Series]] = {}
    usual: dict[str, AdapterRow | None] = {}
    for name in names:
        own = [row for row in rows if row.adapter.series == name]
        counted = Counter(_key(row) for row in own if row.recipe is not None)
        key = counted.most_common(1)[0][0] if counted else f"unknown {name}"
        alike = [row for row in own if row.recipe is not None and _key(row) == key]
        seeds = Counter(row.seed for row in alike)
        seed = seeds.most_common(1)[0][0] if seeds else None
        if any(one.seed == seed for one in members.get(key, [])):
            key += f" again in {name}"
        members.setdefault(key, []).append(Series(name=name, seed=seed, rows=tuple(own)))
        usual.setdefault(key, alike[0] if alike else None)
    return [Group(series=tuple(series), usual=usual[key]) for key, series in members.items()]


def _key(row: AdapterRow) -> str:
    return canonical_json(row.recipe)
