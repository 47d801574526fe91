"""The columns of a report's tables: each is declared once, with its unit and meaning.

docs/report.md shows the same declarations.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mimicry.report.effects import ConditionEffect, Effect, Group, GroupEffects
from mimicry.report.rows import AdapterRow
from mimicry.report.statistics import Interval, Summary, detectable_effect_size
from mimicry.study import AdapterId

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column: unit and meaning as docs/report.md has them, and how a row fills it; None is left empty."""

    name: str
    unit: str
    meaning: str
    value: Callable[[Row], Any]


@dataclass(frozen=True)
class AdapterLine:
    """A row of adapters.csv, and the group that it is compared within."""

    group: Group
    row: AdapterRow


@dataclass(frozen=True)
class EffectLine:
    """A row of effects.csv, and the effects that it belongs to."""

    group: GroupEffects
    effect: Effect


@dataclass(frozen=True)
class ConditionLine:
    """A row of conditions.csv, and the effects that it belongs to."""

    group: GroupEffects
    found: ConditionEffect


def _joined(words: Iterable[str]) -> str | None:
    return "; ".join(words) or None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


_STACK, _VARIANT = ("stack", "name", "way of training"), ("variant", "name", "empty for the plain series")
_PROTECTION = ("protection", "name", "or `none`")
_COUNTERMEASURE = ("countermeasure", "name", "or `none`")
_ARTIST = (("split", "name", ""), ("style", "name", ""), ("artist", "name", ""))


def _of_adapter(get: Callable[[Row], AdapterId]) -> list[Column[Row]]:
    """Return the columns that say which adapter a row is about."""

    def part(name: str) -> Callable[[Row], Any]:
        if name in ("split", "style"):
            return lambda row: getattr(get(row).artist, name)
        if name == "artist":
            return lambda row: get(row).artist.name
        if name in ("protection", "countermeasure"):
            return lambda row: getattr(get(row).condition, name)
        return lambda row: getattr(get(row), name)

    declared = (_STACK, _VARIANT, _PROTECTION, _COUNTERMEASURE, *_ARTIST)
    return [Column(name, unit, meaning, part(name)) for name, unit, meaning in declared]


def _eval(name: str) -> Callable[[AdapterLine], Any]:
    return lambda line: None if line.row.eval_loss is None else getattr(line.row.eval_loss, name)


ADAPTER_COLUMNS: list[Column[AdapterLine]] = [
    *_of_adapter(lambda line: line.row.adapter),
    Column("state", "state", "as docs/adapters.md has them", lambda line: line.row.state.value),
    Column("reason", "text", "why it is so", lambda line: line.row.reason or None),
    Column("recipe_hash", "sha256", "of everything but the images", lambda line: line.row.recipe_hash),
    Column(
        "other_recipe",
        "text",
        "in what it differs from most of its series; then it is compared with nothing",
        lambda line: line.group.other_recipe(line.row) or None,
    ),
    Column("seed", "integer", "of the training", lambda line: line.row.seed),
    Column("steps", "steps", "optimizer steps taken", lambda line: _whole(line.row.number("steps"))),
    Column(
        "images",
        "images",
        "trained on",
        lambda line: len(line.row.run.images or []) or None if line.row.is_there else None,
    ),
    Column("eval_loss_start", "mean squared error", "of the base model", _eval("start")),
    Column("eval_loss_end", "mean squared error", "of the adapter", _eval("end")),
    Column("eval_on", "word", "`held-out`, `in-sample` or `unknown`", _eval("on")),
    Column("eval_images", "images", "evaluated on", _eval("images")),
    Column(
        "eval_timesteps",
        "count",
        "noise levels that each is evaluated at",
        lambda line: None if line.row.eval_loss is None else len(line.row.eval_loss.timesteps),
    ),
    Column(
        "mean_loss",
        "mean squared error",
        "of the training, over all steps",
        lambda line: line.row.number("mean_loss"),
    ),
    Column(
        "final_loss",
        "mean squared error",
        "of the training, at the last step",
        lambda line: line.row.number("final_loss"),
    ),
    Column("psnr", "dB", "to the originals, median over the images", lambda line: line.row.psnr),
    Column(
        "linf",
        "0 to 255",
        "largest difference to the original, median over the images",
        lambda line: line.row.linf,
    ),
    Column("seconds", "seconds", "in the trainer", lambda line: line.row.seconds),
    Column("device", "word", "that it was trained on", lambda line: line.row.device),
    Column(
        "peak_memory_bytes",
        "bytes",
        "of the GPU, or of the process without one",
        lambda line: _whole(line.row.number("peak_memory_bytes")),
    ),
    Column(
        "finished_at", "time", "UTC, ISO 8601", lambda line: line.row.run.content.get("finished_at") or None
    ),
    Column("weights_sha256", "sha256", "of the weights", lambda line: line.row.weights_sha256),
    Column(
        "unpaired",
        "text",
        "in what its images do not pair with the originals",
        lambda line: _joined(line.row.run.unpaired),
    ),
    Column("warnings", "text", "of its record", lambda line: _joined(line.row.run.warnings)),
]


def _over_noise(line: EffectLine) -> float | None:
    noise, value = line.group.noise, line.effect.value
    return value / noise.deviation if noise and noise.deviation and value is not None else None


def _baseline(line: EffectLine) -> float | None:
    value, own = line.effect.value, line.effect.row.eval_loss
    return None if value is None or own is None else own.end - value


EFFECT_COLUMNS: list[Column[EffectLine]] = [
    *_of_adapter(lambda line: line.effect.row.adapter),
    Column("seed", "integer", "of the training", lambda line: line.effect.row.seed),
    Column(
        "effect",
        "mean squared error",
        "`eval_loss` minus `eval_loss_none`; above zero, the originals are predicted worse",
        lambda line: line.effect.value,
    ),
    Column(
        "eval_loss",
        "mean squared error",
        "of the adapter",
        lambda line: None if line.effect.row.eval_loss is None else line.effect.row.eval_loss.end,
    ),
    Column(
        "eval_loss_none",
        "mean squared error",
        "of the artist's none__none of the same series",
        _baseline,
    ),
    Column(
        "eval_on",
        "word",
        "`held-out`, `in-sample` or `unknown`",
        lambda line: None if line.effect.row.eval_loss is None else line.effect.row.eval_loss.on,
    ),
    Column("over_noise", "ratio", "`effect` over the noise floor; empty without replicates", _over_noise),
    Column(
        "comparable",
        "yes or no",
        "whether there is an effect to speak of",
        lambda line: "no" if line.effect.value is None else "yes",
    ),
    Column("obstacles", "text", "why it is not comparable", lambda line: _joined(line.effect.obstacles)),
    Column("notes", "text", "what to bear in mind", lambda line: _joined(line.effect.notes)),
]


def _summary(get: Callable[[Summary], Any]) -> Callable[[ConditionLine], Any]:
    return lambda line: None if line.found.summary is None else get(line.found.summary)


def _against(get: Callable[[Summary], Any]) -> Callable[[ConditionLine], Any]:
    return lambda line: None if line.found.against_protected is None else get(line.found.against_protected)


def _end(interval: Interval | None, side: str) -> float | None:
    return None if interval is None else getattr(interval, side)


def _detectable(line: ConditionLine) -> float | None:
    summary = line.found.summary
    return None if summary is None else detectable_effect(summary)


def detectable_effect(summary: Summary) -> float | None:
    """Return the smallest mean effect that a paired t test on so many artists finds in 80% of studies.

    None for fewer than two artists. It takes the standard deviation between these artists for that of all.
    """
    if summary.deviation is None:
        return None
    return detectable_effect_size(summary.count) * summary.deviation


CONDITION_COLUMNS: list[Column[ConditionLine]] = [
    Column(
        "series",
        "names",
        "those that are replicates of each other, joined by a comma",
        lambda line: line.group.group.name,
    ),
    Column(*_PROTECTION, lambda line: line.found.condition.protection),
    Column(*_COUNTERMEASURE, lambda line: line.found.condition.countermeasure),
    Column("artists", "count", "that can be compared", _summary(lambda found: found.count)),
    Column(
        "artists_in_study", "count", "that the report is about", lambda line: len(line.group.group.artists)
    ),
    Column("seeds", "count", "replicates of each adapter", lambda line: len(line.group.group.series)),
    Column("effect", "mean squared error", "mean over artists", _summary(lambda found: found.mean)),
    Column(
        "effect_sd",
        "mean squared error",
        "standard deviation between artists",
        _summary(lambda found: found.deviation),
    ),
    Column(
        "bootstrap_low",
        "mean squared error",
        "95% interval of the mean, bootstrap over artists",
        _summary(lambda found: _end(found.bootstrap, "low")),
    ),
    Column(
        "bootstrap_high",
        "mean squared error",
        "its other end",
        _summary(lambda found: _end(found.bootstrap, "high")),
    ),
    Column(
        "t_low",
        "mean squared error",
        "95% interval of the mean, Student's t",
        _summary(lambda found: _end(found.t_interval, "low")),
    ),
    Column(
        "t_high",
        "mean squared error",
        "its other end",
        _summary(lambda found: _end(found.t_interval, "high")),
    ),
    Column(
        "artists_above_zero",
        "count",
        "whose effect is above zero",
        _summary(lambda found: found.positive),
    ),
    Column("sign_p", "probability", "sign test, two-sided, exact", _summary(lambda found: found.sign_test)),
    Column(
        "wilcoxon_p",
        "probability",
        "signed-rank test, two-sided, exact",
        _summary(lambda found: found.wilcoxon),
    ),
    Column(
        "wilcoxon_p_holm",
        "probability",
        "the same, raised by Holm's method for the number of conditions",
        lambda line: line.found.holm,
    ),
    Column(
        "effect_size",
        "ratio",
        "`effect` over `effect_sd`, Cohen's d_z",
        _summary(lambda found: found.effect_size),
    ),
    Column(
        "detectable_effect",
        "mean squared error",
        "smallest mean that so many artists find with a power of 80% at 5%, paired t test",
        _detectable,
    ),
    Column(
        "noise_floor",
        "mean squared error",
        "standard deviation of an effect over seeds, pooled",
        lambda line: None if line.group.noise is None else line.group.noise.deviation,
    ),
    Column(
        "noise_freedom",
        "count",
        "degrees of freedom of the noise floor",
        lambda line: None if line.group.noise is None else line.group.noise.freedom,
    ),
    Column("over_noise", "ratio", "`effect` over `noise_floor`", lambda line: line.found.over_noise),
    Column(
        "against_protected",
        "mean squared error",
        "of a countered condition: minus that of the protection alone, mean over artists",
        _against(lambda found: found.mean),
    ),
    Column(
        "against_protected_low",
        "mean squared error",
        "its 95% interval: the bootstrap's, from 5 artists on; else Student's t",
        _against(lambda found: _end(found.interval, "low")),
    ),
    Column(
        "against_protected_high",
        "mean squared error",
        "its other end",
        _against(lambda found: _end(found.interval, "high")),
    ),
    Column(
        "undone",
        "ratio",
        "part of the protection's effect that is gone; empty where that effect is not above zero",
        lambda line: line.found.undone,
    ),
]


def adapter_lines(groups: Sequence[GroupEffects]) -> list[AdapterLine]:
    return [AdapterLine(one.group, row) for one in groups for row in one.group.rows]


def effect_lines(groups: Sequence[GroupEffects]) -> list[EffectLine]:
    return [EffectLine(one, effect) for one in groups for effect in one.effects]


def condition_lines(groups: Sequence[GroupEffects]) -> list[ConditionLine]:
    return [ConditionLine(one, found) for one in groups for found in one.conditions]


def columns_document(columns: Sequence[Column[Any]]) -> str:
    """Return the columns as a table for docs/report.md."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{each.name}` | {each.unit} | {each.meaning} |" for each in columns)])
