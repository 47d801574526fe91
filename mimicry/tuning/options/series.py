"""The series of a study: one recipe each, with an adapter for each cell. Variants and replicates are data."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mimicry.common.errors import Problems, UsageError, nearest
from mimicry.study.tree import ALL, NONE, variant_problem
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.study_file import StudyFile

# What a recipe holds of the base model is not its name, but what the name resolves to.
_BASE_MODEL = ("pretrained_model_name_or_path", "revision")
# The hyper-parameters in which two series differ; others may differ from call to call.
RECIPE_FIELDS = frozenset(
    option.name for option in OPTIONS if option.facts.in_recipe or option.name in _BASE_MODEL
)


@dataclass(frozen=True)
class Series:
    """A variant with its hyper-parameters; the plain series, which has the usual path, has None."""

    variant: str | None
    config: TuningConfig

    @property
    def name(self) -> str:
        """What is typed after --variant for this series."""
        return NONE if self.variant is None else self.variant


def all_series(
    config: TuningConfig, typed: Collection[str], study_file: StudyFile, replicates: int | None = None
) -> tuple[Series, ...]:
    """Return the plain series and its replicates, then each variant of the file with its replicates.

    A replicate is named by its seed: the first has the seed of its recipe and the others the next ones.

    Args:
        config: the hyper-parameters of the call.
        typed: the fields among them that were typed. They hold for variants too, unless they are part of the
            recipe and the variant has another value.
        replicates: of the plain series, in place of what the file says.

    Raises:
        UsageError: what is wrong with the recipes or names, of all series.
    """
    plain = replace(config, **_values(study_file.recipe, typed))
    count = study_file.replicates if replicates is None else replicates
    series: list[Series] = []
    problems = Problems()
    with problems:
        series += _replicates(None, plain, {}, count, str(study_file.path or ""))
    for variant in study_file.variants.values():
        where = f"{study_file.path}: [variants.{variant.name}]"
        with problems:
            values = _values(variant.values, typed)
            series += _replicates(variant.name, plain, values, variant.replicates, where)
    problems.raise_any()
    return tuple(series)


def chosen_series(
    series: Sequence[Series],
    names: Collection[str],
    beside: TuningConfig | None = None,
    present: Collection[str] | None = None,
) -> tuple[Series, ...]:
    """Return the series that `names` mean, in their order; without names all of them.

    Args:
        names: `none` for the plain series alone, `all`, a variant for itself and its replicates, or the name
            of one replicate.
        beside: the hyper-parameters of a study with a name that is not known; without them it is refused.
        present: the only such names that are taken, as the tree has adapters of them; None: any.

    Raises:
        UsageError: names that are not known, all of them.
    """
    known = [one.name for one in series]
    unknown = [name for name in dict.fromkeys(names) if name != ALL and name not in known]
    # A replicate that is not there, of a variant that is, has no recipe of its own.
    wrong = [
        name
        for name in unknown
        if beside is None
        or (present is not None and name not in present)
        or (variant_and_seed(name)[0] or "") in known
    ]
    if wrong:
        known += [ALL, *(present or ())]
        raise UsageError(
            *(f"--variant {name}: there is no such variant; {nearest(name, known)}" for name in wrong)
        )
    chosen = [one for one in series if is_meant(one.variant, names)]
    return (*chosen, *(Series(name, beside) for name in unknown if beside is not None))


def names_of(variant: str | None) -> set[str]:
    """Return the names that --variant takes for a series: its own, and that of the one it replicates."""
    own, replicated = variant or NONE, variant_and_seed(variant)[0]
    return {own, replicated or own}


def is_meant(variant: str | None, names: Collection[str]) -> bool:
    """Return whether --variant with these names means a series; without names it means all."""
    return not names or ALL in names or not names_of(variant).isdisjoint(names)


def planned_variants(study_file: StudyFile) -> list[str | None]:
    """Return the variants that a file names, the plain series first, each with its replicates.

    Raises:
        UsageError: what is wrong with the recipes or names, of all series.
    """
    return [series.variant for series in all_series(TuningConfig(), (), study_file)]


def variant_and_seed(name: str | None) -> tuple[str | None, int | None]:
    """Return which variant a series belongs to, None for the plain one, and the seed of a replicate."""
    found = re.fullmatch(r"(?:(?P<variant>.+)-)?seed-(?P<seed>\d+)", name or "")
    return (found["variant"], int(found["seed"])) if found else (name, None)


def _values(values: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Return the values of a file that hold for a call."""
    return {name: value for name, value in values.items() if name in RECIPE_FIELDS or name not in typed}


def _replicates(
    variant: str | None, plain: TuningConfig, values: Mapping[str, Any], count: int, where: str
) -> Iterator[Series]:
    """Yield a variant and its replicates.

    Raises:
        UsageError: a value or a name cannot be; the message begins with `where`.
    """
    try:
        first = replace(plain, **values)
        yield Series(variant, first)
        for seed in range(first.seed + 1, first.seed + count):
            yield Series(_replicate_name(variant, seed), replace(first, seed=seed))
    except UsageError as error:
        begin = f"{where}: " if where else ""
        raise UsageError(*(f"{begin}{problem}" for problem in error.problems)) from error


def _replicate_name(variant: str | None, seed: int) -> str:
    name = f"seed-{seed}" if variant is None else f"{variant}-seed-{seed}"
    if problem := variant_problem(name):
        raise UsageError(
            f"the replicate with seed {seed} needs a shorter name of the variant, or seed: {problem}"
        )
    return name
