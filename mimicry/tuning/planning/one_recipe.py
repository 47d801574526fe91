"""One recipe per study: what is said of a call that would train with another one."""

from collections.abc import Mapping, Sequence
from typing import Any

from mimicry.common.errors import BatchFault
from mimicry.common.text import first_few, shell_line
from mimicry.study import State
from mimicry.tuning.adapters.recipe import OWN_TRAINER, option_differences, other_base_model, other_trainer
from mimicry.tuning.options.click_options import TypedCommand, hyper_parameter_words
from mimicry.tuning.planning.plan import Plan, recipes_that_stay
from mimicry.tuning.planning.recipes import RecipeGroup, StudyRecipes
from mimicry.tuning.planning.target import Request

_MODEL = "pretrained_model_name_or_path"
_SHOWN_GROUPS = 5


def recipe_problems(plan: Plan, typed: TypedCommand) -> list[str]:
    """Return why the plan may not be carried out for the recipes of the study; empty when it may."""
    if plan.call.retrain_stale or plan.call.allow_mixed_recipes:
        return []
    active = {target.request.series for target in plan.of(State.WAITING, State.RUNNING)}
    return [
        _problem(request, plan.study_recipes(request), typed)
        for request in plan.recipe_requests
        if request.series in active and plan.study_recipes(request).others(request.spec)
    ]


def _problem(request: Request, recipes: StudyRecipes, typed: TypedCommand) -> str:
    counted = sum(len(group.adapters) for group in recipes.groups)
    adapters = "adapter" if counted == 1 else f"{counted} adapters"
    found = f"the {adapters} of this study, in {request.series}, {'has' if counted == 1 else 'have'}"
    found += f" {len(recipes.groups)} recipes" if recipes.is_mixed else " another recipe than this call"
    lines = [f"{found}, so what it trains could not be compared with all of them; nothing was trained"]
    for group in recipes.groups[:_SHOWN_GROUPS]:
        lines += _group_lines(group, request)
    if recipes.unknown:
        names = [f"{one.condition}/{one.artist}" for one in recipes.unknown]
        lines.append(f"not counted, since no record tells their recipe: {first_few(names)}")
    return "\n".join([*lines, *_ways_on(request, recipes, typed)])


def refuse_new_recipes(plan: Plan, request: Request) -> None:
    """Raise BatchFault where another call has brought another recipe into the series since it was planned."""
    if request.retrain_stale or request.allow_mixed_recipes or request.spec.recipe is None:
        return
    others = recipes_that_stay(plan, request).others(request.spec)
    if others:
        lines = [line for group in others for line in _group_lines(group, request)]
        raise BatchFault(
            "\n".join(
                ["since this call began, another one has brought another recipe into the study:", *lines]
            )
            + "\nend the call that is wrong, and type the other one again"
        )


def _group_lines(group: RecipeGroup, request: Request) -> list[str]:
    where = f"{len(group.adapters)} ({group.places()})"
    differing = _difference_rows(group, request)
    if not differing:
        return [f"{where}: the recipe of this call"]
    width = max(len(name) for name, _, _ in differing)
    return [
        f"{where}:",
        *(f"    {name:{width}}  {old} in the study, {new} in this call" for name, old, new in differing),
    ]


def _difference_rows(group: RecipeGroup, request: Request) -> list[tuple[str, str, str]]:
    asked = request.spec.recipe
    if asked is None:
        return []
    recorded = group.recipe
    changed = option_differences(recorded, asked)
    rows = [(name, _shown(old), _shown(new)) for name, (old, new) in changed.items()]
    if other_base_model(recorded, asked):
        rows.append(("base model", _model_name(recorded), _model_name(asked)))
    if other_trainer(recorded, asked):
        rows.append(("trainer", str(recorded.get("trainer")), str(asked["trainer"])))
    if "other class images" in group.differences(request.spec):
        rows.append(("class images", "others", str(request.config.class_data_dir)))
    return rows


def _ways_on(request: Request, recipes: StudyRecipes, typed: TypedCommand) -> list[str]:
    command, notes = _command_for(recipes.groups[0], request, typed)
    beside = "for a study beside it, with the recipe of this call, add --variant NAME"
    if typed.study_file is not None:
        beside = "for a study beside it, write the recipe of this call below [variants.NAME] there"
    all_the_same = "to train all the same, which is recorded and marked, add --allow-mixed-recipes"
    if not recipes.is_mixed:
        replacing = "to replace what has another recipe, one artist after the other, add --retrain-stale"
        return [f"to continue the study: {command}", *notes, beside, replacing, all_the_same]
    own = bool(recipes.groups[0].differences(request.spec))
    return [
        f"to have the recipe of most everywhere, type this for each condition: {command} --retrain-stale",
        *notes,
        *(["to have the recipe of this call everywhere, add --retrain-stale for each"] if own else []),
        beside,
        all_the_same,
    ]


def _command_for(group: RecipeGroup, request: Request, typed: TypedCommand) -> tuple[str, list[str]]:
    recorded, asked = group.recipe, request.spec.recipe
    assert asked is not None
    changed = option_differences(recorded, asked)
    dropped = set(changed)
    words = hyper_parameter_words({name: old for name, (old, _) in changed.items()})
    notes = []
    if other_base_model(recorded, asked):
        dropped |= {_MODEL, "revision"}
        words += _model_words(group)
    if other_trainer(recorded, asked):
        dropped.add("train_script")
        if recorded.get("trainer") != OWN_TRAINER:
            notes = [f"and --train-script with the file {recorded.get('trainer')}"]
    if "other class images" in group.differences(request.spec):
        notes.append(f"and --class-data-dir {(group.run.paths or {}).get('class_data_dir')}, as it was")
    if typed.study_file is not None and words:
        notes.insert(0, f"after writing these values into {typed.study_file}: {shell_line(words)}")
        words = []
    return typed.line(without=dropped, more=words), notes


def _model_words(group: RecipeGroup) -> Sequence[str]:
    model = group.recipe.get("base_model")
    name, revision = map(model.get, ("name", "revision")) if isinstance(model, Mapping) else (None, None)
    if name:
        return ["--pretrained-model-name-or-path", name, *(["--revision", revision] if revision else [])]
    folder = (group.run.paths or {}).get(_MODEL)
    return ["--pretrained-model-name-or-path", folder] if folder else []


def _model_name(recipe: Mapping[str, Any]) -> str:
    model = recipe.get("base_model")
    if not isinstance(model, Mapping):
        return "unknown"
    told_by = model.get("revision") or model.get("fingerprint")
    name = model.get("name") or "a folder"
    return f"{name} {str(told_by)[:12]}" if told_by else str(name)


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
