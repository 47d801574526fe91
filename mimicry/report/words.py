"""What a report says in sentences: does it work, and can one believe it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from mimicry.report.columns import detectable_effect
from mimicry.report.content import condition_title
from mimicry.report.effects import ConditionEffect, GroupEffects, own_obstacles
from mimicry.report.rows import BASELINE, AdapterRow
from mimicry.report.statistics import Interval, Summary, detectable_effect_size
from mimicry.study import EvaluatedOn, State

# What a sentence says: shown, shown to be the other way, not shown, or that nothing can be said.
SHOWN, REVERSED, UNCLEAR, UNKNOWN = "shown", "reversed", "unclear", "unknown"
GOOD, WARNING = "good", "warning"
_ONE_ARTIST = "One artist says nothing about others."


@dataclass(frozen=True)
class Answer:
    """What the study says of a condition, in a word and in a sentence."""

    title: str
    kind: str
    short: str
    text: str


@dataclass(frozen=True)
class Fact:
    """Something to know before one believes a figure."""

    title: str
    kind: str
    text: str


def thousandths(value: float) -> str:
    """Return a loss in thousandths, with its sign."""
    return f"{value * 1000:+.2f}".replace("-", "\N{MINUS SIGN}")


def answers(found: GroupEffects) -> list[Answer]:
    """Return an answer for each condition, protections before what counters them."""
    return [_countered(one) if one.against_protected else _alone(one) for one in found.conditions]


def _alone(one: ConditionEffect) -> Answer:
    title, summary = condition_title(one.condition), one.summary
    if summary is None:
        return Answer(title, UNKNOWN, "nothing to compare", _why_not(one))
    figure = f"{thousandths(summary.mean)} thousandths"
    interval = summary.interval
    if interval is None:
        text = f"The loss of the one artist that can be compared changes by {figure}. {_ONE_ARTIST}"
        return Answer(title, UNKNOWN, "one artist", text)
    span = f"{figure} ({_span(interval)}, {summary.count} artists)"
    if interval.low > 0:
        text = f"The originals are predicted worse than without it: {span}."
        return Answer(title, SHOWN, "makes learning harder", text)
    if interval.high < 0:
        text = f"The originals are predicted better than without it: {span}."
        return Answer(title, REVERSED, "makes learning easier", text)
    return Answer(title, UNCLEAR, "no effect is shown", f"{span}.{_power(summary)}")


def _countered(one: ConditionEffect) -> Answer:
    summary = one.against_protected
    assert summary is not None
    title, interval = condition_title(one.condition), summary.interval
    figure = f"{thousandths(summary.mean)} thousandths against {one.condition.protection} alone"
    if interval is None:
        text = f"{figure}, of the one artist that can be compared. {_ONE_ARTIST}"
        return Answer(title, UNKNOWN, "one artist", text)
    span = f"{figure} ({_span(interval)}, {summary.count} artists)"
    undone = "" if one.undone is None else f" {one.undone:.0%} of the protection's mean effect is gone."
    if interval.high < 0:
        return Answer(title, SHOWN, "takes protection away", f"{span}.{undone}")
    if interval.low > 0:
        return Answer(title, REVERSED, "adds to the protection", f"{span}.")
    text = f"{span}.{undone}{_power(summary)}"
    return Answer(title, UNCLEAR, "not shown to undo it", text)


def _why_not(one: ConditionEffect) -> str:
    counted = Counter(
        obstacle for artist in one.artists for effect in artist.effects for obstacle in effect.obstacles[:1]
    )
    reasons = "; ".join(f"{obstacle} ({count})" for obstacle, count in counted.most_common(3))
    return f"No artist can be compared: {reasons}."


def _power(summary: Summary) -> str:
    detectable = detectable_effect(summary)
    if detectable is None:
        return ""
    return f" With so many artists a mean effect of {detectable * 1000:.2f} would be found in 80% of studies."


def _span(interval: Interval) -> str:
    return f"95% interval {thousandths(interval.low)} to {thousandths(interval.high)}"


def facts(found: GroupEffects) -> list[Fact]:
    """Return what to know of the figures of a group, in the order in which one would ask."""
    return [
        *_attack(found),
        _coverage(found),
        _comparable(found),
        *_evaluation(found),
        _noise(found),
        _artists_enough(found),
        _recipes(found),
        _numerics(found),
    ]


def _attack(found: GroupEffects) -> list[Fact]:
    """Say whether the attack works where nothing protects: else no protection has anything to do."""
    losses = [
        row.eval_loss
        for series in found.group.series
        for row in series.rows
        if row.adapter.condition == BASELINE
        and row.eval_loss is not None
        and not own_obstacles(found.group, series, row)
    ]
    if not losses:
        return []
    start, end = (fsum(getattr(one, name) for one in losses) / len(losses) for name in ("start", "end"))
    text = f"The evaluation loss goes from {start:.3f} to {end:.3f}, mean over {len(losses)} adapters."
    if end >= start:
        text += " They have not learnt from the original art, so there is nothing to protect."
    return [Fact("Attack without protection", GOOD if end < start else WARNING, text)]


def _coverage(found: GroupEffects) -> Fact:
    rows = found.group.rows
    with_data = [row for row in rows if row.state is not State.NO_DATA]
    complete = sum(row.state is State.COMPLETE for row in rows)
    counted = Counter(row.state.value for row in rows if row.state is not State.COMPLETE)
    others = ", ".join(f"{count} {word}" for word, count in counted.most_common())
    text = f"{complete} of {len(with_data)} adapters are complete{f'; {others}' if others else ''}."
    whole = complete == len(with_data)
    return Fact("Coverage", GOOD if whole else WARNING, text)


def _comparable(found: GroupEffects) -> Fact:
    there = [effect for effect in found.effects if effect.row.has_adapter]
    good = [effect for effect in there if effect.value is not None]
    text = f"{len(good)} of {len(there)} trained adapters can be compared with {BASELINE}."
    if len(good) < len(there):
        text += " The others stay out of every mean; the reasons are below."
    whole = bool(good) and len(good) == len(there)
    return Fact("Comparisons", GOOD if whole else WARNING, text)


def _evaluation(found: GroupEffects) -> list[Fact]:
    losses = [row.eval_loss for row in found.group.rows if row.eval_loss is not None]
    if not losses:
        return [Fact("Evaluation", WARNING, "No adapter has an evaluation loss, so there are no effects.")]
    counted = Counter(one.on for one in losses)
    images = sorted({one.images for one in losses})
    number = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    parts = ", ".join(f"{count} {on}" for on, count in counted.most_common())
    text = f"On {number} paintings of each artist: {parts}."
    if counted[EvaluatedOn.IN_SAMPLE]:
        text += (
            f" In-sample means that {BASELINE} was trained on these paintings, and the other conditions on "
            f"altered ones: a part of the effect may be remembered paintings, and not style."
        )
    return [Fact("Evaluation", GOOD if set(counted) == {EvaluatedOn.HELD_OUT} else WARNING, text)]


def _noise(found: GroupEffects) -> Fact:
    if found.noise is None:
        seeds = len(found.group.series)
        why = "there is one seed" if seeds == 1 else "no cell was trained with two seeds"
        text = f"Not known: {why}. Nobody can say how much of an effect is chance of the training."
        return Fact("Noise floor", WARNING, text)
    text = (
        f"{found.noise.deviation * 1000:.2f} thousandths: the standard deviation of an effect over "
        f"{len(found.group.series)} seeds, with {found.noise.freedom} degrees of freedom."
    )
    return Fact("Noise floor", GOOD, text)


def _artists_enough(found: GroupEffects) -> Fact:
    most = max((one.summary.count for one in found.conditions if one.summary), default=0)
    if most < 2:
        text = f"{most} can be compared: there is no interval, no test, and nothing to say of other artists."
        return Fact("Artists", WARNING, text)
    size = detectable_effect_size(most)
    text = (
        f"{most} can be compared. A paired t test finds a mean effect of {size:.2f} standard deviations "
        f"between artists in 80% of studies of so many, at 5%."
    )
    return Fact("Artists", GOOD if most >= 10 else WARNING, text)


def _recipes(found: GroupEffects) -> Fact:
    others = [row for row in found.group.rows if found.group.other_recipe(row)]
    seeds = ", ".join(map(str, found.group.seeds)) or "not known"
    if others:
        text = f"{len(others)} adapters have another recipe than the others, and stay out. Seeds: {seeds}."
        return Fact("Recipe", WARNING, text)
    return Fact("Recipe", GOOD, f"One for all adapters. Seeds: {seeds}.")


def _numerics(found: GroupEffects) -> Fact:
    drifted = [effect for effect in found.effects if set(effect.notes) - {EvaluatedOn.IN_SAMPLE}]
    devices = Counter(row.device for row in found.group.rows if row.device)
    names = ", ".join(f"{device} ({count})" for device, count in devices.most_common()) or "not known"
    text = f"Trained on: {names}."
    if drifted:
        text += (
            f" {len(drifted)} adapters were trained with another device or other libraries than {BASELINE}, "
            f"such as {_of(drifted[0].row)}."
        )
    return Fact("Numerics", WARNING if drifted else GOOD, text)


def _of(row: AdapterRow) -> str:
    return f"{row.adapter.condition}/{row.adapter.artist}"


def reasons(found: GroupEffects) -> list[tuple[str, Sequence[str]]]:
    """Return why trained adapters are not comparable, each with the adapters."""
    counted: dict[str, list[str]] = {}
    for effect in found.effects:
        if effect.value is None and effect.row.has_adapter:
            for obstacle in effect.obstacles:
                series = "" if len(found.group.series) == 1 else f"{effect.series.name}: "
                counted.setdefault(obstacle, []).append(f"{series}{_of(effect.row)}")
    return sorted(counted.items(), key=lambda item: -len(item[1]))
