"""The next command of a study, as its status shows it: one that loses no step and asks for no new recipe."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.files import canonical_json, read_json
from mimicry.study import ALL, NONE, Condition, State
from mimicry.tuning.adapters import TO_TRAIN, AdapterStatus, complete_options, recipe_differences
from mimicry.tuning.options.click_options import TypedCommand, hyper_parameter_words
from mimicry.tuning.options.config import OPTIONS
from mimicry.tuning.options.study_defaults import STUDY_VARIANT
from mimicry.tuning.options.study_file import StudyFile, planned_variants
from mimicry.tuning.planning.recipes import StudyRecipes
from mimicry.tuning.status.study_status import StudyStatus

# Where `mimicry report` writes to, unless --output says otherwise, and its file for programs.
DEFAULT_REPORT, REPORT_JSON = Path("report"), "report.json"
_SEED = "seed"
_MODEL, _CLASS_IMAGES = "pretrained_model_name_or_path", "class_data_dir"
# Options that say which study and artists are meant, which all programs take.
_SHARED = ("data_root", "study", "stack", "splits", "styles", "artists", "pilot")


def next_command(status: StudyStatus, typed: TypedCommand, study_file: StudyFile) -> str:
    """Return the command that brings the study on; or that all is done.

    Args:
        typed: the command line of the status, whose filters hold for the next command too.
        study_file: what need not be given as an option, as it is written there.
    """
    return _NextCommand(status, typed, study_file).line()


@dataclass(frozen=True)
class _Recipe:
    """A recipe that the next training has to have, and the paths of the machine that it was trained with."""

    recipe: Mapping[str, Any]
    paths: Mapping[str, Any]

    @property
    def model(self) -> str | None:
        """The base model's name, or its folder, which has no name; None where neither is known."""
        model = self.recipe.get("base_model")
        return (model.get("name") if isinstance(model, dict) else None) or self.paths.get(_MODEL)


@dataclass(frozen=True)
class _NextCommand:
    status: StudyStatus
    typed: TypedCommand
    study_file: StudyFile

    def line(self) -> str:
        status = self.status
        variants = self._typed_variants()
        if todo := status.with_state(*TO_TRAIN):
            return self._training(todo)
        # What to do about these is for the user to decide: the plan names the ways.
        if undecided := status.with_state(State.BLOCKED, State.STALE):
            return self._training(undecided, "--dry-run")
        if any(cell.owed for cell in status.cells):
            return self._command("mimicry", "upload", words=variants)
        if status.with_state(State.RUNNING, State.QUEUED):
            return self._command("mimicry", "status", words=[*variants, "--watch"])
        complete = status.with_state(State.COMPLETE)
        if not complete or any(not _has_files(status.tree.samples_of(cell.adapter)) for cell in complete):
            return self._command("mimicry", "samples", words=variants)
        if not self._is_reported(complete):
            return self._command("mimicry", "report", words=variants)
        return f"nothing: all is trained, sampled and reported in {DEFAULT_REPORT}"

    def _training(self, cells: Sequence[AdapterStatus], *more: str) -> str:
        series = cells[0].adapter.series
        own = [cell for cell in cells if cell.adapter.series == series]
        recipe = _recipe_of(self.status.recipes.get(series, StudyRecipes()), own)
        model_is_known = recipe is None or recipe.model or _MODEL in self.study_file.recipe
        if not model_is_known or self._drops_checkpoint(own, recipe):
            more = ("--dry-run",)
        words = [
            *self._conditions({cell.adapter.condition for cell in own}),
            *self._variant(own[0].adapter.variant),
            *([] if recipe is None else self._recipe_words(recipe, own[0].adapter.variant)),
            *more,
        ]
        return self._command("apply_tuning", words=words)

    def _drops_checkpoint(self, cells: Sequence[AdapterStatus], recipe: _Recipe | None) -> bool:
        known = [cell.checkpoint_recipe for cell in cells if cell.checkpoint_recipe is not None]
        spec = self.status.specs.get(cells[0].adapter.series)
        return any(
            (recipe is not None and recipe_differences(each, recipe.recipe))
            or (spec is not None and spec.differences(each))
            for each in known
        )

    def _is_reported(self, cells: Sequence[AdapterStatus]) -> bool:
        try:
            report = read_json(DEFAULT_REPORT / REPORT_JSON)
            same = Path(report["data_root"]).resolve() == self.status.tree.data_root.resolve()
            return same and all(str(cell.run.finished_at or "") <= report["made_at"] for cell in cells)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def _command(self, *program: str, words: Sequence[str]) -> str:
        shared = {name: given for name, given in self.typed.options.items() if name in _SHARED}
        return replace(self.typed, program=program, options=shared).line(more=words)

    def _typed_variants(self) -> Sequence[str]:
        return self.typed.options.get(STUDY_VARIANT, ())

    def _variant(self, variant: str | None) -> list[str]:
        if variant in planned_variants(self.study_file) and not self._typed_variants():
            return []
        return ["--variant", variant or NONE]

    def _conditions(self, conditions: Collection[Condition]) -> list[str]:
        """Return the options for conditions, unless the study's file has them; for several, all there are."""
        words: list[str] = []
        for name, flag, values in (
            ("protections", "--protection", {each.protection for each in conditions}),
            ("countermeasures", "--countermeasure", {each.countermeasure for each in conditions}),
        ):
            if name in self.typed.options:
                words += self.typed.options[name]
            elif name not in self.study_file.study:
                value = next(iter(values)) if len(conditions) == 1 else ALL
                if name == "countermeasures" and self._lacks_images(conditions):
                    value = ALL  # a pair of two names would need images of every artist
                words += [] if value == NONE else [flag, value]
        return words

    def _lacks_images(self, conditions: Collection[Condition]) -> bool:
        return any(cell.adapter.condition in conditions for cell in self.status.with_state(State.NO_DATA))

    def _recipe_words(self, recipe: _Recipe, variant: str | None) -> list[str]:
        values = {**(complete_options(recipe.recipe) or {}), _MODEL: recipe.model}
        values[_CLASS_IMAGES] = recipe.paths.get(_CLASS_IMAGES)
        said = {option.name: option.default for option in OPTIONS}
        file, written = self.study_file, set[str]()
        if file.path is not None and variant in planned_variants(file):
            others = (name for each in file.variants.values() for name in each.values)
            written = {_SEED, *file.recipe, *others}
        else:
            # A series that the file does not name takes its values as defaults.
            said |= file.recipe
        return hyper_parameter_words(
            {
                option.name: values[option.name]
                for option in OPTIONS
                if option.name in values
                and values[option.name] != said[option.name]
                and option.name not in written
            }
        )


def _recipe_of(recipes: StudyRecipes, cells: Sequence[AdapterStatus]) -> _Recipe | None:
    """Return the recipe of most adapters of a series; without any, that of its checkpoints, or of records."""
    if recipes.groups:
        return _Recipe(recipes.groups[0].recipe, recipes.groups[0].run.paths or {})
    checkpoints = [(cell.checkpoint_recipe, cell) for cell in cells if cell.checkpoint_recipe is not None]
    begun = checkpoints or [(cell.run.recipe, cell) for cell in cells if cell.run.recipe is not None]
    if not begun:
        return None
    (most, _), *_ = Counter(canonical_json(recipe) for recipe, _ in begun).most_common(1)
    recipe, cell = next(each for each in begun if canonical_json(each[0]) == most)
    assert recipe is not None
    return _Recipe(recipe, cell.run.paths or {})


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
