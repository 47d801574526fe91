"""What to type next in a study, as its status shows it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mimicry.study import State
from mimicry.study.conditions import ALL
from mimicry.study.tree import NONE
from mimicry.tuning.adapters.recipe import complete_options
from mimicry.tuning.options import OPTIONS
from mimicry.tuning.options.typed_command import TypedCommand, hyper_parameter_words
from mimicry.tuning.planning.recipes import StudyRecipes
from mimicry.tuning.reports.cell import Cell
from mimicry.tuning.reports.status import TO_TRAIN, StudyStatus

_MODEL = "pretrained_model_name_or_path"
# Options that say which study and artists are meant, which all programs take.
_SHARED = ("data_root", "stack", "splits", "styles", "artists", "pilot")


def next_command(status: StudyStatus, typed: TypedCommand) -> str:
    """Return the command that brings the study on, and what it is for.

    Args:
        typed: the command line of the status, whose filters hold for the next command too.
    """
    todo, owed = status.of(*TO_TRAIN), [cell for cell in status.cells if cell.owed]
    blocked, stale = status.of(State.BLOCKED), status.of(State.STALE)
    if todo:
        return _training(status, typed, todo)
    if blocked:
        return _training(status, typed, blocked, "--dry-run")
    if stale:
        return _training(status, typed, stale, "--retrain-stale")
    if owed:
        return _line(typed, ("mimicry", "upload"), _variant_words(owed[0]))
    if status.of(State.RUNNING):
        return _line(typed, ("mimicry", "status"), ["--watch"])
    return _line(typed, ("mimicry", "samples"), _variant_words(status.cells[0]))


def _training(status: StudyStatus, typed: TypedCommand, cells: Sequence[Cell], *more: str) -> str:
    """Return the call of apply_tuning for cells; of several series, for the first one."""
    series = cells[0].adapter.series
    own = [cell for cell in cells if cell.adapter.series == series]
    words = [
        *_condition_words(own, typed),
        *_variant_words(own[0]),
        *_recipe_words(status.recipes.get(series, StudyRecipes())),
        *more,
    ]
    return _line(typed, ("apply_tuning",), words)


def _line(typed: TypedCommand, program: tuple[str, ...], words: Sequence[str]) -> str:
    shared = {name: given for name, given in typed.options.items() if name in _SHARED}
    return replace(typed, program=program, options=shared).line(more=words)


def _variant_words(cell: Cell) -> list[str]:
    return [] if cell.adapter.variant is None else ["--variant", cell.adapter.variant]


def _condition_words(cells: Sequence[Cell], typed: TypedCommand) -> list[str]:
    """Return the options for the conditions of cells; where they are several, as the status was asked."""
    conditions = {cell.adapter.condition for cell in cells}
    if len(conditions) > 1:
        protections = typed.options.get("protections", ("--protection", ALL))
        return [*protections, *typed.options.get("countermeasures", ("--countermeasure", ALL))]
    (condition,) = conditions
    named = (("--protection", condition.protection), ("--countermeasure", condition.countermeasure))
    return [word for flag, name in named if name != NONE for word in (flag, name)]


def _recipe_words(recipes: StudyRecipes) -> list[str]:
    """Return the options of the recipe that most adapters have, as far as they are not the defaults."""
    if not recipes.groups:
        return []
    run = recipes.groups[0].run
    known = complete_options(recipes.groups[0].recipe) or {}
    model = recipes.groups[0].recipe.get("base_model")
    name = model.get("name") if isinstance(model, dict) else None
    # A base model in a folder has no name.
    values: dict[str, Any] = {_MODEL: name or (run.paths or {}).get(_MODEL), **known}
    defaults = {option.name: option.default for option in OPTIONS}
    return hyper_parameter_words(
        {name: value for name, value in values.items() if value != defaults.get(name)}
    )
