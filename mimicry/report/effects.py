"""What a condition does to the evaluation loss of an artist, and what all artists say together.

Series whose recipes differ in the seed alone are replicates, and make one group. Groups are never averaged.

The effect of a condition is the evaluation loss of its adapter minus that of the artist's none__none of the
same series: above zero where the originals are predicted worse. What is not comparable is in no mean.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mimicry.common.files import canonical_json
from mimicry.report.rows import BASELINE, AdapterRow
from mimicry.report.statistics import Spread, Summary, holm, pooled_spread, summarize
from mimicry.study import NONE, Artist, Condition, EvaluatedOn, State, in_order
from mimicry.tuning.adapters import numerics_differences, recipe_differences


@dataclass(frozen=True, kw_only=True)
class AdapterSeries:
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

    series: tuple[AdapterSeries, ...]
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
        if not row.has_adapter or self.usual is None:
            return ""
        return recipe_changes(self.usual, row)

    def other_seed(self, series: AdapterSeries, row: AdapterRow) -> str:
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
    members: dict[str, list[AdapterSeries]] = {}
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
        members.setdefault(key, []).append(AdapterSeries(name=name, seed=seed, rows=tuple(own)))
        usual.setdefault(key, alike[0] if alike else None)
    return [Group(series=tuple(series), usual=usual[key]) for key, series in members.items()]


def _key(row: AdapterRow) -> str:
    return canonical_json(row.recipe)


# All adapters of an artist start from one model and one set of paintings. Rounding differs between devices.
_SAME_START = 1e-3


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of one adapter's condition, without a unit, as the evaluation loss.

    `value` is None where there is none to speak of; `obstacles` say why. `notes` leave it comparable.
    """

    series: AdapterSeries
    row: AdapterRow
    value: float | None
    obstacles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ArtistEffect:
    """The effects of a condition on one artist over all seeds; `value` is their mean, None without any."""

    artist: Artist
    condition: Condition
    effects: tuple[Effect, ...]

    @cached_property
    def values(self) -> list[float]:
        return [effect.value for effect in self.effects if effect.value is not None]

    @property
    def value(self) -> float | None:
        return math.fsum(self.values) / len(self.values) if self.values else None


@dataclass(frozen=True, kw_only=True)
class ConditionEffect:
    """What all artists say of a condition.

    `summary` is None where no artist can be compared. `holm` is Wilcoxon's p, raised for the number of
    conditions. `over_noise` is the mean over the noise floor.

    Of a countered condition, `against_protected` is its loss minus that of the same artist under the
    protection alone, below zero where the countermeasure gives the style back, and `undone` is the part of
    the protection's effect that is gone, over the artists that have both; None where there is no protection,
    or the interval of its effect is not above zero, so that nothing is known to be undone.
    """

    condition: Condition
    artists: tuple[ArtistEffect, ...]
    summary: Summary | None
    holm: float | None = None
    over_noise: float | None = None
    against_protected: Summary | None = None
    undone: float | None = None


@dataclass(frozen=True, kw_only=True)
class GroupEffects:
    """The effects of a group. `noise` is the noise floor: by how much an effect varies with the seed alone.

    It is the standard deviation of effects of one condition and artist over the seeds, pooled over all of
    these; None where there is one seed. `loss_noise` is that of the evaluation losses themselves.
    """

    group: Group
    conditions: tuple[ConditionEffect, ...]
    noise: Spread | None
    loss_noise: Spread | None

    @property
    def effects(self) -> list[Effect]:
        return [effect for one in self.conditions for artist in one.artists for effect in artist.effects]

    @cached_property
    def by_place(self) -> Mapping[tuple[Artist, Condition], ArtistEffect]:
        return {(artist.artist, one.condition): artist for one in self.conditions for artist in one.artists}


def group_effects(group: Group) -> GroupEffects:
    """Return the effects of every condition of a group but none__none itself."""
    artists = {
        condition: tuple(_artist_effect(group, artist, condition) for artist in group.artists)
        for condition in group.conditions
        if condition != BASELINE
    }
    noise = pooled_spread(artist.values for found in artists.values() for artist in found)
    summaries = {
        condition: summarize([one.value for one in found if one.value is not None])
        for condition, found in artists.items()
    }
    raised = holm([None if found is None else found.wilcoxon for found in summaries.values()])
    conditions = []
    for (condition, found), probability in zip(artists.items(), raised, strict=True):
        summary = summaries[condition]
        against, undone = _against_protected(found, artists.get(Condition(condition.protection), ()))
        conditions.append(
            ConditionEffect(
                condition=condition,
                artists=found,
                summary=summary,
                holm=probability,
                over_noise=summary.mean / noise.deviation if summary and noise and noise.deviation else None,
                against_protected=against,
                undone=undone,
            )
        )
    return GroupEffects(group=group, conditions=tuple(conditions), noise=noise, loss_noise=_loss_noise(group))


def _artist_effect(group: Group, artist: Artist, condition: Condition) -> ArtistEffect:
    effects = [
        _effect(group, series, row, series.by_place.get((artist, BASELINE)))
        for series in group.series
        if (row := series.by_place.get((artist, condition))) is not None
    ]
    return ArtistEffect(artist=artist, condition=condition, effects=tuple(effects))


def _effect(group: Group, series: AdapterSeries, row: AdapterRow, baseline: AdapterRow | None) -> Effect:
    obstacles = own_obstacles(group, series, row)
    if baseline is None:
        obstacles.append(f"there is no {BASELINE}")
    else:
        obstacles += [f"{BASELINE}: {word}" for word in own_obstacles(group, series, baseline)]
        if not obstacles:
            obstacles += _other_evaluation(row, baseline)
    if obstacles or baseline is None or row.eval_loss is None or baseline.eval_loss is None:
        return Effect(series=series, row=row, value=None, obstacles=tuple(obstacles))
    return Effect(
        series=series,
        row=row,
        value=row.eval_loss.end - baseline.eval_loss.end,
        notes=tuple(_notes(row, baseline)),
    )


def adapter_obstacles(group: Group, series: AdapterSeries, row: AdapterRow) -> list[str]:
    """Say why what an adapter does cannot be compared with what others do; nothing where it can."""
    if row.state is not State.COMPLETE:
        return [": ".join(filter(None, (row.state.value, row.reason)))]
    words = [f"unpaired: {mark}" for mark in row.run.unpaired]
    other_recipe = group.other_recipe(row)
    words += [f"another recipe: {other_recipe}"] if other_recipe else []
    words += filter(None, [group.other_seed(series, row)])
    return words


def own_obstacles(group: Group, series: AdapterSeries, row: AdapterRow) -> list[str]:
    """Say why an adapter cannot be compared, or its evaluation loss cannot; nothing where both can."""
    words = adapter_obstacles(group, series, row)
    if row.state is State.COMPLETE and row.eval_loss is None:
        words.append("no evaluation loss")
    elif row.eval_loss is not None and row.eval_loss.on == EvaluatedOn.UNKNOWN:
        words.append("evaluated on paintings of which nobody knows whether they were trained on")
    return words


def _other_evaluation(row: AdapterRow, baseline: AdapterRow) -> list[str]:
    one, other = row.eval_loss, baseline.eval_loss
    if one is None or other is None:
        return []
    words = []
    if one.on != other.on:
        words.append(f"evaluated {one.on}, {BASELINE} {other.on}")
    if one.images != other.images:
        words.append(f"evaluated on {one.images} paintings, {BASELINE} on {other.images}")
    if one.timesteps != other.timesteps:
        words.append(f"evaluated at other timesteps than {BASELINE}")
    if not words and abs(one.start - other.start) > _SAME_START * abs(other.start):
        start = f"starts from {one.start:.4g} and {BASELINE} from {other.start:.4g}"
        words.append(f"{start}: other paintings or another model")
    return words


def _notes(row: AdapterRow, baseline: AdapterRow) -> list[str]:
    is_in_sample = row.eval_loss is not None and row.eval_loss.on == EvaluatedOn.IN_SAMPLE
    notes: list[str] = [EvaluatedOn.IN_SAMPLE] if is_in_sample else []
    changed = numerics_differences(baseline.run.numerics or {}, row.run.numerics or {})
    return [*notes, f"other numerics than {BASELINE}: {', '.join(changed)}"] if changed else notes


def _against_protected(
    countered: Sequence[ArtistEffect], protected: Sequence[ArtistEffect]
) -> tuple[Summary | None, float | None]:
    """Return a countered condition against the protection alone, and how much of its effect is gone."""
    if not countered or NONE in (countered[0].condition.protection, countered[0].condition.countermeasure):
        return None, None
    alone = {one.artist: one.value for one in protected}
    pairs = [
        (one.value, before)
        for one in countered
        if one.value is not None and (before := alone.get(one.artist)) is not None
    ]
    summary = summarize([after - before for after, before in pairs])
    before_all = summarize([before for _, before in pairs])
    if before_all is None or before_all.interval is None or before_all.interval.low <= 0:
        return summary, None
    return summary, 1 - math.fsum(after for after, _ in pairs) / (before_all.mean * len(pairs))


def _loss_noise(group: Group) -> Spread | None:
    losses: dict[tuple[Artist, Condition], list[float]] = {}
    for series in group.series:
        for place, row in series.by_place.items():
            if not own_obstacles(group, series, row) and row.eval_loss is not None:
                losses.setdefault(place, []).append(row.eval_loss.end)
    return pooled_spread(losses.values())
