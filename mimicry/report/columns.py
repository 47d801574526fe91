"""The columns of a report's tables: each is declared once, with its unit and meaning.

docs/report.md shows the same declarations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mimicry.report.effects import ConditionEffect, Effect, Group, GroupEffects
from mimicry.report.rows import AdapterRow
from mimicry.report.statistics import Summary, detectable_effect_size

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


def _at(path: str) -> Callable[[Any], Any]:
    """Return what reads a value at a dotted path below a line; None where there is nothing on the way."""

    def read(value: Any) -> Any:
        for name in path.split("."):
            value = None if value is None else getattr(value, name)
        return value

    return read


def _text(path: str) -> Callable[[Any], str | None]:
    """Return what reads a text; None where it is empty. Several are joined."""

    def read(line: Any) -> str | None:
        text = _at(path)(line)
        return (text if isinstance(text, str) else "; ".join(text)) or None

    return read


def _recorded(key: str, *, whole: bool = False) -> Callable[[AdapterLine], float | None]:
    """Return what reads a number of the record."""

    def read(line: AdapterLine) -> float | None:
        value = line.row.number(key)
        return round(value) if whole and value is not None else value

    return read


def _of_adapter(path: str) -> list[Column[Any]]:
    """Return the columns that say which adapter, at this path, a row is about."""
    return [
        Column("stack", "name", "way of training", _at(f"{path}.stack")),
        Column("variant", "name", "empty for the plain series", _at(f"{path}.variant")),
        *_of_condition(f"{path}.condition"),
        *(Column(name, "name", "", _at(f"{path}.artist.{name}")) for name in ("split", "style")),
        Column("artist", "name", "", _at(f"{path}.artist.name")),
    ]


def _of_condition(path: str) -> list[Column[Any]]:
    return [
        Column(name, "name", "or `none`", _at(f"{path}.{name}")) for name in ("protection", "countermeasure")
    ]


_LOSS = "mean squared error"
_EVALUATED = "`held-out`, `in-sample` or `unknown`"


def _images(line: AdapterLine) -> int | None:
    return len(line.row.run.images or []) or None if line.row.has_adapter else None


def _timesteps(line: AdapterLine) -> int | None:
    return None if line.row.eval_loss is None else len(line.row.eval_loss.timesteps)


ADAPTER_COLUMNS: list[Column[AdapterLine]] = [
    *_of_adapter("row.adapter"),
    Column("state", "state", "as docs/adapters.md has them", _at("row.state.value")),
    Column("reason", "text", "why it is so", _text("row.reason")),
    Column("recipe_hash", "sha256", "of everything but the images", _at("row.recipe_hash")),
    Column(
        "other_recipe",
        "text",
        "in what it differs from most of its series; then it is compared with nothing",
        lambda line: line.group.other_recipe(line.row) or None,
    ),
    Column("seed", "integer", "of the training", _at("row.seed")),
    Column("steps", "steps", "optimizer steps taken", _recorded("steps", whole=True)),
    Column("images", "images", "trained on", _images),
    Column("eval_loss_start", _LOSS, "of the base model", _at("row.eval_loss.start")),
    Column("eval_loss_end", _LOSS, "of the adapter", _at("row.eval_loss.end")),
    Column("eval_on", "word", _EVALUATED, _at("row.eval_loss.on")),
    Column("eval_images", "images", "evaluated on", _at("row.eval_loss.images")),
    Column("eval_timesteps", "count", "noise levels that each is evaluated at", _timesteps),
    Column("mean_loss", _LOSS, "of the training, over all steps", _recorded("mean_loss")),
    Column("final_loss", _LOSS, "of the training, at the last step", _recorded("final_loss")),
    Column("psnr", "dB", "to the originals, median over the images", _at("row.psnr")),
    Column("linf", "0 to 255", "largest difference to the original, median over the images", _at("row.linf")),
    Column("seconds", "seconds", "in the trainer", _at("row.seconds")),
    Column("device", "word", "that it was trained on", _at("row.device")),
    Column(
        "peak_memory_bytes",
        "bytes",
        "of the GPU, or of the process without one",
        _recorded("peak_memory_bytes", whole=True),
    ),
    Column(
        "finished_at", "time", "UTC, ISO 8601", lambda line: line.row.run.content.get("finished_at") or None
    ),
    Column("weights_sha256", "sha256", "of the weights", _at("row.weights_sha256")),
    Column(
        "unpaired", "text", "in what its images do not pair with the originals", _text("row.run.unpaired")
    ),
    Column("warnings", "text", "of its record", _text("row.run.warnings")),
]


def _over_noise(line: EffectLine) -> float | None:
    noise, value = line.group.noise, line.effect.value
    return value / noise.deviation if noise and noise.deviation and value is not None else None


def _baseline(line: EffectLine) -> float | None:
    value, own = line.effect.value, line.effect.row.eval_loss
    return None if value is None or own is None else own.end - value


EFFECT_COLUMNS: list[Column[EffectLine]] = [
    *_of_adapter("effect.row.adapter"),
    Column("seed", "integer", "of the training", _at("effect.row.seed")),
    Column(
        "effect",
        _LOSS,
        "`eval_loss` minus `eval_loss_none`; above zero, the originals are predicted worse",
        _at("effect.value"),
    ),
    Column("eval_loss", _LOSS, "of the adapter", _at("effect.row.eval_loss.end")),
    Column("eval_loss_none", _LOSS, "of the artist's none__none of the same series", _baseline),
    Column("eval_on", "word", _EVALUATED, _at("effect.row.eval_loss.on")),
    Column("over_noise", "ratio", "`effect` over the noise floor; empty without replicates", _over_noise),
    Column(
        "comparable",
        "yes or no",
        "whether there is an effect to speak of",
        lambda line: "no" if line.effect.value is None else "yes",
    ),
    Column("obstacles", "text", "why it is not comparable", _text("effect.obstacles")),
    Column("notes", "text", "what to bear in mind", _text("effect.notes")),
]


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


_OTHER_END = "its other end"
CONDITION_COLUMNS: list[Column[ConditionLine]] = [
    Column(
        "series",
        "names",
        "those that are replicates of each other, joined by a comma",
        _at("group.group.name"),
    ),
    *_of_condition("found.condition"),
    Column("artists", "count", "that can be compared", _at("found.summary.count")),
    Column(
        "artists_in_study", "count", "that the report is about", lambda line: len(line.group.group.artists)
    ),
    Column("seeds", "count", "replicates of each adapter", lambda line: len(line.group.group.series)),
    Column("effect", _LOSS, "mean over artists", _at("found.summary.mean")),
    Column("effect_sd", _LOSS, "standard deviation between artists", _at("found.summary.deviation")),
    Column(
        "bootstrap_low",
        _LOSS,
        "95% interval of the mean, bootstrap over artists",
        _at("found.summary.bootstrap.low"),
    ),
    Column("bootstrap_high", _LOSS, _OTHER_END, _at("found.summary.bootstrap.high")),
    Column("t_low", _LOSS, "95% interval of the mean, Student's t", _at("found.summary.t_interval.low")),
    Column("t_high", _LOSS, _OTHER_END, _at("found.summary.t_interval.high")),
    Column("artists_above_zero", "count", "whose effect is above zero", _at("found.summary.positive")),
    Column("sign_p", "probability", "sign test, two-sided, exact", _at("found.summary.sign_test")),
    Column("wilcoxon_p", "probability", "signed-rank test, two-sided, exact", _at("found.summary.wilcoxon")),
    Column(
        "wilcoxon_p_holm",
        "probability",
        "the same, raised by Holm's method for the number of conditions",
        _at("found.holm"),
    ),
    Column(
        "effect_size", "ratio", "`effect` over `effect_sd`, Cohen's d_z", _at("found.summary.effect_size")
    ),
    Column(
        "detectable_effect",
        _LOSS,
        "smallest mean that so many artists find with a power of 80% at 5%, paired t test",
        _detectable,
    ),
    Column(
        "noise_floor",
        _LOSS,
        "standard deviation of an effect over seeds, pooled",
        _at("group.noise.deviation"),
    ),
    Column("noise_freedom", "count", "degrees of freedom of the noise floor", _at("group.noise.freedom")),
    Column("over_noise", "ratio", "`effect` over `noise_floor`", _at("found.over_noise")),
    Column(
        "against_protected",
        _LOSS,
        "of a countered condition: minus that of the protection alone, mean over artists",
        _at("found.against_protected.mean"),
    ),
    Column(
        "against_protected_low",
        _LOSS,
        "its 95% interval: the bootstrap's, from 5 artists on; else Student's t",
        _at("found.against_protected.interval.low"),
    ),
    Column("against_protected_high", _LOSS, _OTHER_END, _at("found.against_protected.interval.high")),
    Column(
        "undone",
        "ratio",
        "part of the protection's effect that is gone; empty where that effect is not above zero",
        _at("found.undone"),
    ),
]


def adapter_lines(groups: Sequence[GroupEffects]) -> list[AdapterLine]:
    return [AdapterLine(one.group, row) for one in groups for row in one.group.rows]


def effect_lines(groups: Sequence[GroupEffects]) -> list[EffectLine]:
    return [EffectLine(one, effect) for one in groups for effect in one.effects]


def condition_lines(groups: Sequence[GroupEffects]) -> list[ConditionLine]:
    return [ConditionLine(one, found) for one in groups for found in one.conditions]
