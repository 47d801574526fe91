"""What a command takes from study.toml: defaults, of which those in the recipe cannot be overridden."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mimicry.common.errors import UsageError
from mimicry.study.tree import ALL, DEFAULT_DATA_ROOT, NONE, StudyTree
from mimicry.tuning.options.config import OPTIONS, TuningConfig
from mimicry.tuning.options.study_file import (
    ALSO_IN_STUDY,
    RECIPE_FIELDS,
    Series,
    StudyFile,
    all_series,
    chosen_series,
    variant_and_seed,
)

# Parameters of the options --data-root, --study, --variant and --replicates. `variant` is that of the base
# model's files.
DATA_ROOT, STUDY_PATH, STUDY_VARIANT, REPLICATES = "data_root", "study", "study_variant", "replicates"
_META = "mimicry.study_file"
_WAYS_ON = (
    "a study has one recipe. Change the file; or write the other value there below [variants.NAME], and type "
    "--variant NAME; or leave the file out with --study none"
)


def study_file_of(context: click.Context) -> StudyFile:
    """Return what the study's file says to the command in `context`; without a file, nothing."""
    found: StudyFile = context.meta.get(_META, StudyFile())
    return found


def series_of_call(context: click.Context, config: TuningConfig) -> tuple[Series, ...]:
    """Return the series that a command is about, by its --variant; without one, all of the study.

    A variant that the file does not have is a study next to it, if a recipe was given as options, or if the
    tree has adapters of it. Any other name is refused, since it is a slip.

    Args:
        config: the hyper-parameters of the call, as `take_config` gives them.

    Raises:
        UsageError: what is wrong with recipes and names.
    """
    study_file = study_file_of(context)
    typed = _typed(context)
    series = all_series(config, typed, study_file, context.params.get(REPLICATES))
    present = None
    if typed.isdisjoint(RECIPE_FIELDS):
        present = StudyTree(context.params[DATA_ROOT]).variants(Path(context.params["stack"]).name)
    return chosen_series(series, _variants(context), config, present)


def take_study_file(context: click.Context, parameters: Sequence[click.Parameter], words: list[str]) -> None:
    """Read the study's file before `words` are parsed, and make defaults of its values.

    Only options that are declared with `from_file` have such a default. A command without --study has none.

    Raises:
        UsageError: the file cannot be read, or something in it is wrong.
        click.UsageError: `words` cannot be parsed.
    """
    if context.resilient_parsing or STUDY_PATH not in {parameter.name for parameter in parameters}:
        return
    given, _, _ = context.command.make_parser(context).parse_args(args=list(words))
    # --help and --version work whatever is in the file.
    if any(parameter.is_eager for parameter in parameters if parameter.name in given):
        return
    study_file = _find(given.get(DATA_ROOT, DEFAULT_DATA_ROOT), given.get(STUDY_PATH))
    context.meta[_META] = study_file
    taken = {parameter.name for parameter in parameters if getattr(parameter, "from_file", False)}
    defaults = {name: value for name, value in study_file.values.items() if name in taken}
    context.default_map = {**(context.default_map or {}), **defaults}


def _find(data_root: str | Path, study: str | None) -> StudyFile:
    if study == NONE:
        return StudyFile()
    if study is not None:
        return StudyFile.read(Path(study))
    return StudyFile.from_tree(StudyTree(Path(data_root)))


def refuse_contradictions(context: click.Context) -> None:
    """Refuse typed values that the study's file has otherwise in the recipe of a series that is meant.

    Raises:
        UsageError: all of them.
    """
    study_file = study_file_of(context)
    typed = _typed(context) & RECIPE_FIELDS
    if study_file.path is None or not typed:
        return
    problems: dict[str, str] = {}
    for recipe in _recipes_in(study_file, _variants(context), context.params.get(REPLICATES)):
        for option in OPTIONS:
            value = option.canonical(context.params.get(option.name))
            # What is out of bounds is refused with other such values.
            if option.name not in typed or option.name not in recipe or option.problem(value):
                continue
            written, where = recipe[option.name]
            if not _is_same(value, written):
                problems[option.name] = (
                    f"{option.flag} is {value}, but {study_file.path} has {written} {where}; {_WAYS_ON}"
                )
    if problems:
        raise UsageError(*problems.values())


def _typed(context: click.Context) -> set[str]:
    return {
        option.name
        for option in OPTIONS
        if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }


def _variants(context: click.Context) -> tuple[str, ...]:
    given: tuple[str, ...] = context.params.get(STUDY_VARIANT, ())
    return given


def _recipes_in(
    study_file: StudyFile, names: Sequence[str], replicates: int | None
) -> Iterator[dict[str, tuple[Any, str]]]:
    """Yield the hyper-parameters that the file has for each of the series, with the place, by field."""
    plain = {
        name: (value, "in [study] or [recipe]" if name in ALSO_IN_STUDY else "in [recipe]")
        for name, value in study_file.recipe.items()
    }
    for name in names or (NONE,):
        series = None if name in (NONE, ALL) else name
        variant, seed = variant_and_seed(series)
        recipe, count = dict(plain), study_file.replicates if replicates is None else replicates
        if variant is not None:
            if variant not in study_file.variants:
                continue  # a study beside
            table = study_file.variants[variant]
            recipe |= {field: (value, f"in [variants.{variant}]") for field, value in table.values.items()}
            count = table.replicates
        if seed is not None:
            if count == 1:
                continue  # a study beside, too
            recipe["seed"] = (seed, f"for its replicate {name}")
        yield recipe


def _is_same(typed: Any, written: Any) -> bool:
    """Return whether two values are the same, or two paths lead to the same folder."""
    if typed == written:
        return True
    paths = isinstance(typed, str) and isinstance(written, str) and Path(typed).is_dir()
    return paths and os.path.realpath(typed) == os.path.realpath(written)
