"""How far a study is: which cells it has, how each of them is, and which recipes they have.

Status, verification, upload, samples and report all begin here.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mimicry.common.errors import UsageError, nearest
from mimicry.common.processes import NOT_AS_ASKED
from mimicry.study import (
    ALL,
    NONE,
    AdapterId,
    CellFilter,
    CellImages,
    Condition,
    Matrix,
    State,
    StudyTree,
    series_name,
)
from mimicry.tuning.adapters import AdapterSpec, AdapterStatus, Inspector, QueuedJob, open_tracker
from mimicry.tuning.adapters.judge import OF_BASE_MODEL
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.execution.engines import queued_jobs
from mimicry.tuning.options.click_options import selection_of
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.study_defaults import STUDY_VARIANT
from mimicry.tuning.options.study_file import (
    StudyFile,
    all_series,
    is_meant,
    names_of,
    planned_variants,
    variant_and_seed,
)
from mimicry.tuning.planning.recipes import RecipeGroup, StudyRecipes
from mimicry.tuning.stacks import Stack

# These want somebody to look: the next call of apply_tuning may well end in the same way.
BAD = (State.BROKEN, State.FAILED, State.BLOCKED)
# All states that a cell may have, in the order in which they are counted.
_ORDER = (
    *(State.COMPLETE, State.RUNNING, State.QUEUED, State.WAITING, State.INTERRUPTED, State.STALE),
    *(*BAD, State.NO_DATA),
)


def count_states(cells: Iterable[AdapterStatus]) -> dict[State, int]:
    """Return how many cells are in each state that some are in, what is done first."""
    counted = Counter(cell.state for cell in cells)
    return {state: counted[state] for state in _ORDER if counted[state]}


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The cells of a study that are meant, each with its state.

    `recipes` has those of each series, and `specs` what the study's file asks of a series, by series.
    """

    tree: StudyTree
    matrix: Matrix
    cells: tuple[AdapterStatus, ...]
    recipes: Mapping[str, StudyRecipes]
    specs: Mapping[str, AdapterSpec] = field(default_factory=dict)

    def with_state(self, *states: State) -> list[AdapterStatus]:
        return [cell for cell in self.cells if cell.state in states]

    @property
    def counts(self) -> dict[State, int]:
        """How many cells are in each state, without the states that none is in."""
        return count_states(self.cells)

    @property
    def is_mixed(self) -> bool:
        """Whether a series has adapters of several recipes."""
        return any(recipes.is_mixed for recipes in self.recipes.values())

    @property
    def exit_code(self) -> int:
        """0 when all cells that have data are complete, 1 when some are bad, else 3; without data 3 too."""
        states = {cell.state for cell in self.cells if cell.has_data}
        if states & {*BAD}:
            return 1
        return 0 if states == {State.COMPLETE} else NOT_AS_ASKED


def read_status(
    parameters: Mapping[str, Any],
    study_file: StudyFile,
    *,
    full: bool = False,
    always: Iterable[Condition] = (),
) -> StudyStatus:
    """Return how the cells are that a command with the options of tree, conditions and artists means.

    Args:
        study_file: what the study is to have; without a file, what has images, adapters or bookmarks.
        full: read every value and every image, whatever is remembered.
        always: conditions that belong to it whatever the filters say.

    Raises:
        UsageError: names that match nothing.
    """
    tree, stack = StudyTree(parameters["data_root"]), Stack.find(parameters["stack"])
    images, bookmarks = CellImages(tree), open_tracker(tree).bookmarks()
    series = series_meant(tree, stack.name, parameters[STUDY_VARIANT], planned_variants(study_file))
    chosen = cell_filter(parameters, study_file)
    least = int(study_file.study.get("min_samples_per_artist", 1)) + int(study_file.recipe.get("hold_out", 0))
    return look_at(
        Inspector(
            images,
            form=stack.traits.adapter_format,
            bookmarks=bookmarks,
            specs=written_specs(study_file, stack),
            queue=_queue(tree),
            full=full,
            anew=full,
        ),
        Matrix.choose(images, bookmarks, series, chosen, always=always, least=least),
    )


def cell_filter(parameters: Mapping[str, Any], study_file: StudyFile) -> CellFilter:
    """Return which cells a command means by its options, or else by the study's file."""
    return CellFilter(
        protections=parameters["protections"] or study_file.study.get("protections", (ALL,)),
        countermeasures=parameters["countermeasures"] or study_file.study.get("countermeasures", (ALL,)),
        selection=selection_of(parameters),
    )


def series_meant(
    tree: StudyTree, stack: str, names: Sequence[str], planned: Sequence[str | None] = (None,)
) -> list[str]:
    """Return the folders of the series that --variant means: by default all, the plain one first.

    A variant stands for its replicates, too; those that are `planned` need not have adapters yet.

    Raises:
        UsageError: variants that nothing has, all of them.
    """
    present = list(dict.fromkeys([*filter(None, planned), *tree.variants(stack)]))
    known = {NONE, ALL}.union(*map(names_of, present))
    problems = [
        f"--variant {name}: there are no adapters of it in {tree.lora}; {nearest(name, sorted(known))}"
        for name in names
        if name not in known
    ]
    if problems:
        raise UsageError(*problems)
    return [series_name(stack, variant) for variant in (None, *present) if is_meant(variant, names)]


def written_specs(study_file: StudyFile, stack: Stack) -> dict[str, AdapterSpec]:
    """Return what the study's file asks of the adapters of each series: what is written, and no more."""
    if study_file.path is None or not stack.takes_options:
        return {}
    specs = {}
    for series in all_series(TuningConfig(), (), study_file):
        variant, seed = variant_and_seed(series.variant)
        fields = {*study_file.recipe, *(() if variant is None else study_file.variants[variant].values)}
        fields |= set() if seed is None else {"seed"}
        if not fields:
            continue
        spec = AdapterSpec(recipe=recipe(series.config, None, OWN_TRAINER))
        if fields & OF_BASE_MODEL:
            spec = stack.traits.adapter_spec(series.config, OWN_TRAINER)
        specs[series_name(stack.name, series.variant)] = replace(
            spec, rank=None, class_images=None, fields=frozenset(fields)
        )
    return specs


def look_at(inspector: Inspector, matrix: Matrix) -> StudyStatus:
    """Return how the cells of a matrix are; those of another recipe than their series are stale."""
    inspector.absent = matrix.absent
    cells = {cell.adapter: cell for cell in inspector.look_at(matrix)}
    tree = inspector.images.tree
    recipes = {}
    for series in matrix.series:
        own = [
            (adapter, cell.run, cell.weights is not None)
            for adapter, cell in cells.items()
            if adapter.series == series and (cell.weights is not None or cell.state is State.RUNNING)
        ]
        # All adapters of a series are to have one recipe, those that are not meant here too.
        others = [each for each in matrix.adapters if each.series == series and each not in cells]
        recipes[series] = StudyRecipes.read(tree, others, more=own)
        spec = inspector.specs.get(series)
        for adapter, reason in _of_another_recipe(recipes[series], spec):
            if adapter in cells:
                cells[adapter] = _stale(cells[adapter], reason)
    return StudyStatus(
        tree=tree, matrix=matrix, cells=tuple(cells.values()), recipes=recipes, specs=inspector.specs
    )


def _queue(tree: StudyTree) -> Mapping[str, QueuedJob]:
    jobs, faults = queued_jobs(tree)
    for fault in faults:
        print(f"warning: jobs of the cluster are left out: {fault}", file=sys.stderr)
    return jobs


def _of_another_recipe(recipes: StudyRecipes, spec: AdapterSpec | None) -> list[tuple[AdapterId, str]]:
    """Return the adapters whose recipe is not that of most of their series, each with the differences."""

    def fits(group: RecipeGroup) -> bool:
        return spec is None or not spec.differences(group.recipe)

    fitting = [group for group in recipes.groups if fits(group)]
    return [
        (adapter, f"another recipe than {len(fitting[0].adapters)} of its series: {', '.join(changes)}")
        for group in fitting[1:]
        for changes in [fitting[0].changes_to(group)]
        for adapter in group.adapters
    ]


def _stale(cell: AdapterStatus, reason: str) -> AdapterStatus:
    reason = ", ".join(filter(None, (cell.reason, reason)))
    if cell.state is not State.COMPLETE:
        return replace(cell, reason=reason)
    return replace(cell, state=State.STALE, weights=State.STALE, reason=reason)
