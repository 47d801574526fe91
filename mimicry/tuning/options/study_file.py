"""study.toml: what a study trains, written down once instead of typed for each call."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimicry.common.errors import UsageError, nearest
from mimicry.study.tree import ALL, StudyTree, variant_problem
from mimicry.tuning.options.config import OPTIONS
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
    def of(cls, tree: StudyTree) -> "StudyFile":
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
    """Return which table takes a key of this name; empty if none does."""
    places: Sequence[tuple[str, Mapping[str, Key]]] = (
        (_STUDY, STUDY_KEYS),
        (_RECIPE, HYPER_PARAMETERS),
        (_SAMPLES, SAMPLE_KEYS),
    )
    found = [f"[{table}]" for table, keys in places if name.replace("-", "_") in keys]
    return f"it is a key of {' and '.join(found)}" if found else ""
