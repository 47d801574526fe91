"""What to type next in a study, as its status shows it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mimicry.study import Condition, State
from mimicry.study.tree import ALL, NONE
from mimicry.tuning.adapters.inspect import TO_TRAIN, AdapterStatus
from mimicry.tuning.adapters.recipe import complete_options
from mimicry.tuning.options import OPTIONS, STUDY_VARIANT
from mimicry.tuning.options.series import planned_variants
from mimicry.tuning.options.study_file import StudyFile
from mimicry.tuning.options.typed_command import TypedCommand, hyper_parameter_words
from mimicry.tuning.planning.recipes import StudyRecipes
from mimicry.tuning.reports.status import StudyStatus

_SEED = "seed"
_MODEL = "pretrained_model_name_or_path"
# Options that say which study and artists are meant, which all programs take.
_SHARED = ("data_root", "study", "stack", "splits", "styles", "artists", "pilot")


def next_command(status: StudyStatus, typed: TypedCommand, study_file: StudyFile) -> str:
    """Return the command that brings the study on.

    Args:
        typed: the command line of the status, whose filters hold for the next command too.
        study_file: what need not be typed, as it says so.
    """
    return _Words(status, typed, study_file).command()


@dataclass(frozen=True)
class _Words:
    status: StudyStatus
    typed: TypedCommand
    study_file: StudyFile

    def command(self) -> str:
        status = self.status
        owed = [cell for cell in status.cells if cell.owed]
        if todo := status.with_state(*TO_TRAIN):
            return self._training(todo)
        if blocked := status.with_state(State.BLOCKED):
            return self._training(blocked, "--dry-run")
        if stale := status.with_state(State.STALE):
            return self._training(stale, "--retrain-stale")
        if owed:
            return self._line("mimicry", "upload", words=self._typed_variants())
        if status.with_state(State.RUNNING, State.QUEUED):
            return self._line("mimicry", "status", words=[*self._typed_variants(), "--watch"])
        return self._line("mimicry", "samples", words=self._typed_variants())

    def _training(self, cells: Sequence[AdapterStatus], *more: str) -> str:
        """Return the call of apply_tuning for cells; of several series that it does not know, for one."""
        series = cells[0].adapter.series
        own = [cell for cell in cells if cell.adapter.series == series]
        words = [
            *self._conditions({cell.adapter.condition for cell in own}),
            *self._variant(own[0].adapter.variant),
            *self._recipe(self.status.recipes.get(series, StudyRecipes())),
            *more,
        ]
        return self._line("apply_tuning", words=words)

    def _line(self, *program: str, words: Sequence[str]) -> str:
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
                words += [] if value == NONE else [flag, value]
        return words

    def _recipe(self, recipes: StudyRecipes) -> list[str]:
        """Return the options of the recipe that most adapters have, which neither file nor default say."""
        if not recipes.groups:
            return []
        group = recipes.groups[0]
        model = group.recipe.get("base_model")
        # A base model in a folder has no name.
        name = (model.get("name") if isinstance(model, dict) else None) or (group.run.paths or {}).get(_MODEL)
        values = {_MODEL: name, **(complete_options(group.recipe) or {})}
        return hyper_parameter_words(
            {
                option.name: values[option.name]
                for option in OPTIONS
                if option.name in values
                and values[option.name] != option.default
                and option.name not in self._written()
            }
        )

    def _written(self) -> set[str]:
        """Return the hyper-parameters that the study's file says, for all series or for some."""
        if self.study_file.path is None:
            return set()
        variants = self.study_file.variants.values()
        return {_SEED, *self.study_file.recipe, *(name for each in variants for name in each.values)}
