"""study.toml: what a study trains, written down once instead of typed for each call; and its series.

A series has one recipe, and an adapter for each cell: the study's own, its replicates, variants of it.
"""

import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mimicry.common.errors import Problems, UsageError, nearest
from mimicry.study.tree import ALL, NONE, StudyTree, variant_problem
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.declarations import Facts, Option

ORDERS = ("artist", "condition")
MOST_REPLICATES = 1000
_STUDY, _RECIPE, _VARIANTS, _SAMPLES = "study", "recipe", "variants", "samples"
_TABLES = (_STUDY, _RECIPE, _VARIANTS, _SAMPLES)
_REPLICATES = "replicates"
# Hyper-parameters that may stand in [study] as well.
ALSO_IN_STUDY = ("hold_out",)
# Values that name a file or folder. Those that begin with ./ or ../ are relative to the folder of the file.
_PATHS = {
    *("stack", "pretrained_model_name_or_path", "cache_dir", "prompt_cache_dir", "class_data_dir"),
    "resume_from_checkpoint",
}
# What replicates are called.
_SEED_NAME = re.compile(r"(?:.*-)?seed-[0-9]+", re.IGNORECASE)


@dataclass(frozen=True)
class Key:
    """A key of a table: what a value is, and whether it is a list of them; its name is a parameter's."""

    option: Option
    is_list: bool = False

    def value(self, value: Any) -> tuple[Any, str]:
        """Return `value` as a parameter takes it, and what is wrong with it, which is empty if nothing is."""
        if not self.is_list:
            known = self.option.canonical(value)
            return known, _without_flag(self.option, self.option.problem(known))
        items = [value] if isinstance(value, str) and self.option.type is str else value
        if not isinstance(items, list) or not items:
            return None, f" is {value!r}; it takes a list in [ ], with at least one value"
        known = tuple(map(self.option.canonical, items))
        problems = (_without_flag(self.option, self.option.problem(item)) for item in known)
        return known, next(filter(None, problems), "")


def _key(name: str, kind: type, help: str, *, is_list: bool = False, **facts: Any) -> Key:
    declared = Option(
        name=name, type=kind, optional=False, default=None, facts=Facts(help=help, **facts), topic=""
    )
    return Key(declared, is_list)


def _by_name(*keys: Key) -> dict[str, Key]:
    return {key.option.name: key for key in keys}


# Hyper-parameters by their long names, which is that of the option and not always that of the field.
HYPER_PARAMETERS = {option.flag.removeprefix("--").replace("-", "_"): Key(option) for option in OPTIONS}
STUDY_KEYS = _by_name(
    _key("protections", str, f'Names, none among them, or "{ALL}" that have images.', is_list=True),
    _key("countermeasures", str, f'Names, none among them, or "{ALL}" that have images.', is_list=True),
    _key(
        _REPLICATES,
        int,
        "Trainings of each cell, with the seeds seed, seed + 1, and so on.",
        minimum=1,
        maximum=MOST_REPLICATES,
    ),
    _key("order", str, "Which is finished before the next: each artist, or each condition.", choices=ORDERS),
    _key("splits", str, "Only these splits.", is_list=True),
    _key("styles", str, "Only these styles.", is_list=True),
    _key("artists", str, "Only these artists.", is_list=True),
    _key("pilot", bool, "Only the first artist of each split and style."),
    _key("min_samples_per_artist", int, "An artist with fewer images is blocked.", minimum=1),
    _key("push_to_hub", bool, "Upload each adapter, privately."),
    _key("hub_namespace", str, "User or organisation on the Hub."),
    _key("base_model_id", str, "Hub name to publish for a base model in a local folder."),
    _key("stack", str, "Way of training: a name, or a folder with a runner_config.json."),
)
STUDY_KEYS |= {name: HYPER_PARAMETERS[name] for name in ALSO_IN_STUDY}
SAMPLE_KEYS = _by_name(
    _key("prompts", str, "What to draw.", is_list=True),
    _key(
        "seeds",
        int,
        "Seeds of the noise that samples begin with.",
        is_list=True,
        minimum=0,
        maximum=2**63 - 1,
    ),
    _key("steps", int, "Steps from noise to image.", minimum=1, maximum=1000),
    _key("guidance", float, "Weight of the prompt; 1 is none.", minimum=1, maximum=100),
    _key("base", bool, "Draw with the base model alone, too."),
)
VARIANT_KEYS = {_REPLICATES: STUDY_KEYS[_REPLICATES]} | HYPER_PARAMETERS


@dataclass(frozen=True)
class Variant:
    """A table [variants.NAME]: the hyper-parameters that differ from those of the recipe, by field."""

    name: str
    values: Mapping[str, Any]
    replicates: int = 1


@dataclass(frozen=True)
class StudyFile:
    """What a study.toml says, checked; without a file nothing, and `path` is None.

    `study` and `samples` are by the parameter of a command, `recipe` is by the field of TuningConfig.
    """

    path: Path | None = None
    study: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "StudyFile":
        """Return what the file at `path` says.

        Raises:
            UsageError: it cannot be read, or something in it is wrong: all of that.
        """
        return _Reader(path).read(_tables(path))

    @classmethod
    def from_tree(cls, tree: StudyTree) -> "StudyFile":
        """Return what the study.toml of a tree says; nothing where it has none.

        Raises:
            UsageError: it cannot be read, or something in it is wrong: all of that.
        """
        path = tree.study_file
        # A link that leads nowhere is there, and cannot be read.
        return cls.read(path) if path.exists() or path.is_symlink() else cls()

    @property
    def replicates(self) -> int:
        """How often each cell is trained with the recipe of the study."""
        return int(self.study.get(_REPLICATES, 1))

    @property
    def values(self) -> dict[str, Any]:
        """What commands take from the file, by their parameters; variants are not among it."""
        return {**self.study, **self.recipe, **self.samples}


def _without_flag(option: Option, problem: str | None) -> str:
    return "" if problem is None else problem.removeprefix(option.flag)


def _tables(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}; name a file that can be read with --study, or type "
            f"--study none"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8; save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    # tomllib also raises ValueError for numbers and dates that Python does not take.
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML: {error}; text stands in quotes, lists in [ ], and true and false are "
            f"written small"
        ) from error


class _Reader:
    """Checks the tables of a file and collects what is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[str] = []

    def read(self, document: Mapping[str, Any]) -> StudyFile:
        for name, value in document.items():
            if name not in _TABLES:
                self._refuse_unknown_table(name, value)
            elif not isinstance(value, dict):
                self._refuse(name, f" is {value!r}; write it as a table: [{name}]")
        tables = {name: value if isinstance(value := document.get(name), dict) else {} for name in _TABLES}
        study = self._table(f"[{_STUDY}]", tables[_STUDY], STUDY_KEYS)
        recipe = self._table(f"[{_RECIPE}]", tables[_RECIPE], HYPER_PARAMETERS)
        for name in ALSO_IN_STUDY:
            if name not in study:
                continue
            value = study.pop(name)
            if recipe.setdefault(name, value) != value:
                self._refuse(
                    f"[{_STUDY}] {name}",
                    f" differs from [{_RECIPE}] {name}; write it in one of the two tables",
                )
        variants = dict(self._variants(tables[_VARIANTS]))
        samples = self._table(f"[{_SAMPLES}]", tables[_SAMPLES], SAMPLE_KEYS)
        if self._problems:
            raise UsageError(*self._problems)
        return StudyFile(self._path, study, recipe, variants, samples)

    def _refuse(self, where: str, problem: str) -> None:
        self._problems.append(f"{self._path}: {where}{problem}")

    def _refuse_unknown_table(self, name: str, value: Any) -> None:
        if isinstance(value, dict):
            self._refuse(f"[{name}]", f": there is no such table; {nearest(name, _TABLES)}")
        else:
            self._refuse(name, f" stands in no table; {_place_of(name) or f'write it below [{_RECIPE}]'}")

    def _table(self, where: str, table: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
        """Return the values of a table that are right, by parameter."""
        values: dict[str, Any] = {}
        for name, value in table.items():
            key = keys.get(name.replace("-", "_"))
            if key is None:
                hint = _place_of(name) or nearest(name, list(keys))
                self._refuse(f"{where} {name}", f": there is no such key; {hint}")
                continue
            known, problem = key.value(value)
            if problem:
                self._refuse(f"{where} {name}", problem)
            elif key.option.name in values:
                self._refuse(f"{where} {name}", " is there twice, with - and with _; leave one of them out")
            else:
                values[key.option.name] = self._located(key.option, known)
        return values

    def _located(self, option: Option, value: Any) -> Any:
        """Return a path that begins with ./ or ../ as seen from the working directory."""
        if option.name not in _PATHS or str(value).partition("/")[0] not in (".", ".."):
            return value
        path = self._path.parent / value
        short = os.path.normpath(path)
        # Without the dots it is another path where a folder on the way is a link.
        shown = short if os.path.realpath(short) == os.path.realpath(path) else str(path)
        return shown if "/" in shown else f"./{shown}"  # not the name of a stack or model

    def _variants(self, tables: Mapping[str, Any]) -> Iterator[tuple[str, Variant]]:
        for name, table in tables.items():
            where = f"[{_VARIANTS}.{name}]"
            if not isinstance(table, dict):
                self._refuse(
                    f"[{_VARIANTS}] {name}",
                    f" is {table!r}; write the values of a variant below [{_VARIANTS}.NAME]",
                )
                continue
            if problem := variant_problem(name) or _reserved(name):
                self._refuse(where, f": {problem}")
            values = self._table(where, table, VARIANT_KEYS)
            replicates = values.pop(_REPLICATES, 1)
            if not table.keys() - {_REPLICATES}:
                self._refuse(where, " has the recipe of the study; name a hyper-parameter that differs")
            yield name, Variant(name, values, replicates)


def _reserved(name: str) -> str:
    if _SEED_NAME.fullmatch(name):
        return (
            f"{name!r} is what a replicate is called; take another name, and {_REPLICATES} = N for replicates"
        )
    return ""


def _place_of(name: str) -> str:
    places: Sequence[tuple[str, Mapping[str, Key]]] = (
        (_STUDY, STUDY_KEYS),
        (_RECIPE, HYPER_PARAMETERS),
        (_SAMPLES, SAMPLE_KEYS),
    )
    found = [f"[{table}]" for table, keys in places if name.replace("-", "_") in keys]
    return f"it is a key of {' and '.join(found)}" if found else ""


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
    """Yield a variant and its replicates."""
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
