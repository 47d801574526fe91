"""How far a study is: which cells it has, how each of them is, and which recipes they have."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mimicry.common.errors import Problems, UsageError
from mimicry.common.programs import NOT_AS_ASKED
from mimicry.study import AdapterId, Artist, ChosenConditions, Condition, State, StudyTree, in_order
from mimicry.study.cells import CellImages, is_named
from mimicry.study.selection import Selection
from mimicry.study.tracker import Bookmarks
from mimicry.study.tree import ALL, NONE
from mimicry.tuning.adapters import AdapterFormat
from mimicry.tuning.adapters.training_run import Evaluated
from mimicry.tuning.execution.executor import QueuedJob
from mimicry.tuning.planning.recipes import RecipeGroup, StudyRecipes
from mimicry.tuning.reports.cell import Cell, CellReader, Recorded

# These want somebody to look: the next call of apply_tuning may well end in the same way.
BAD = (State.BROKEN, State.FAILED, State.BLOCKED)
# These are trained by the next call of apply_tuning with the options of the study.
TO_TRAIN = (State.PENDING, State.INTERRUPTED, State.FAILED, State.BROKEN)
# All states that a cell may have, in the order in which they are counted.
_ORDER = (
    *(State.COMPLETE, State.RUNNING, State.QUEUED, State.PENDING, State.INTERRUPTED, State.STALE),
    *(*BAD, State.NO_DATA),
)


def state_word(state: State) -> str:
    """Return what a status says for a state."""
    return "waiting" if state is State.PENDING else state.value


def count_states(cells: Iterable[Cell]) -> dict[State, int]:
    """Return how many cells are in each state that some are in, what is done first."""
    counted = Counter(cell.state for cell in cells)
    return {state: counted[state] for state in _ORDER if counted[state]}


@dataclass(frozen=True, kw_only=True)
class StudyCells:
    """Which cells are meant: all artists in all conditions of all series, and the adapters that are there.

    `series` are folders of adapters, and `adapters` all that lie in them, whether they are meant or not.
    `absent` says why a condition has no images, for those in which nothing was trained either.
    """

    series: tuple[str, ...]
    conditions: tuple[Condition, ...]
    artists: tuple[Artist, ...]
    adapters: tuple[AdapterId, ...] = ()
    absent: Mapping[Condition, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[AdapterId]:
        for series in self.series:
            for condition in self.conditions:
                for artist in self.artists:
                    yield AdapterId.in_series(series, condition, artist)


def choose_cells(
    images: CellImages,
    bookmarks: Bookmarks,
    *,
    series: Sequence[str],
    protections: Sequence[str] = (ALL,),
    countermeasures: Sequence[str] = (ALL,),
    selection: Selection | None = None,
) -> StudyCells:
    """Return the cells of a study: conditions and artists that have images, adapters or bookmarks.

    Raises:
        UsageError: names that match nothing, all of them.
    """
    tree = images.tree
    adapters = tuple(adapter for each in series for adapter in tree.adapters(each))
    begun = [*adapters, *_marked(bookmarks, series)]
    problems = Problems()
    chosen, conditions = ChosenConditions(()), list[Condition]()
    with problems:
        trained = {
            condition
            for condition in {each.condition for each in begun}
            if is_named(condition, protections, countermeasures)
        }
        chosen = ChosenConditions.choose(
            tree,
            _without_adapters_alone(tree, protections, {Condition(each.protection) for each in trained}),
            _without_adapters_alone(
                tree, countermeasures, {Condition(countermeasure=each.countermeasure) for each in trained}
            ),
            needed=False,
        )
        conditions = in_order({*chosen.present, *(pair for pair, _ in chosen.absent), *trained})
    known = images.artists(conditions) | {each.artist for each in begun}
    artists: list[Artist] = []
    with problems:
        artists = (selection or Selection()).choose(
            sorted(known), lambda artist: images.of(Condition(), artist) is not None
        )
    problems.raise_any()
    return StudyCells(
        series=tuple(series),
        conditions=tuple(conditions),
        artists=tuple(artists),
        adapters=adapters,
        absent={pair: reason for pair, reason in chosen.absent if pair not in trained},
    )


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The state of each cell that is meant, in their order, and the recipes of each series."""

    tree: StudyTree
    meant: StudyCells
    cells: tuple[Cell, ...]
    recipes: Mapping[str, StudyRecipes]

    def of(self, *states: State) -> list[Cell]:
        return [cell for cell in self.cells if cell.state in states]

    @property
    def counts(self) -> dict[State, int]:
        """How many cells are in each state, without the states that none is in."""
        return count_states(self.cells)

    @property
    def exit_code(self) -> int:
        """0 when all cells that have data are complete, 1 when some are bad, else 3; without data 3 too."""
        states = {cell.state for cell in self.cells if cell.has_data}
        if states & {*BAD}:
            return 1
        return 0 if states == {State.COMPLETE} else NOT_AS_ASKED


def study_status(
    images: CellImages, form: AdapterFormat, meant: StudyCells, bookmarks: Bookmarks
) -> StudyStatus:
    """Look at each cell that is meant.

    Args:
        form: the format of the stack's adapters.
        bookmarks: those of this step, by key.
    """
    reader = CellReader(images, form, bookmarks, meant.absent)
    cells = {adapter: reader.read(adapter) for adapter in meant}
    # All adapters of a series are to have one recipe, those that are not meant here too.
    for adapter in meant.adapters:
        if adapter not in cells:
            reader.read_recipe(adapter)
    recipes = {
        series: _recipes(images.tree, [each for each in reader.recorded if each.adapter.series == series])
        for series in meant.series
    }
    for found in recipes.values():
        for adapter, group in found.by_adapter().items():
            if group is not found.groups[0] and adapter in cells:
                cells[adapter] = _of_another_recipe(cells[adapter], found.groups[0], group)
    return StudyStatus(tree=images.tree, meant=meant, cells=tuple(cells.values()), recipes=recipes)


def with_jobs(status: StudyStatus, jobs: Mapping[str, QueuedJob]) -> StudyStatus:
    """Return the status with the jobs of a cluster.

    What a live job will train is queued, and of what runs the job is named.

    Args:
        jobs: those that have not ended, by key.
    """
    cells = []
    for cell in status.cells:
        job = jobs.get(cell.adapter.key)
        if job is not None and cell.state in (State.RUNNING, *TO_TRAIN):
            state = cell.state if cell.state is State.RUNNING else State.QUEUED
            log = str(job.log(status.tree).relative_to(status.tree.data_root))
            cell = replace(cell, state=state, reason=str(job), job_log=log)
        cells.append(cell)
    return replace(status, cells=tuple(cells))


def _marked(bookmarks: Bookmarks, series: Sequence[str]) -> Iterator[AdapterId]:
    """Yield the adapters of these series that have a bookmark."""
    for key in bookmarks:
        name, *parts = key.split("/")
        if name in series and len(parts) == 5:
            protection, countermeasure, *artist = parts
            yield AdapterId.in_series(name, Condition(protection, countermeasure), Artist(*artist))


def _without_adapters_alone(tree: StudyTree, names: Sequence[str], trained: set[Condition]) -> list[str]:
    """Return the names without those that only adapters have: their images are gone.

    Args:
        trained: for each name that adapters have, the condition of that name alone.
    """
    gone = set()
    for condition in trained:
        try:
            tree.check_names(condition)
        except UsageError:
            gone |= {condition.protection, condition.countermeasure}
    return [name for name in names if name == NONE or name not in gone]


def _recipes(tree: StudyTree, recorded: Sequence[Recorded]) -> StudyRecipes:
    """Return the recipes of a series; of records that are equal one is enough to tell theirs."""
    alike: list[list[Recorded]] = []
    for each in recorded:
        for others in alike:
            if (others[0].class_images, others[0].recipe) == (each.class_images, each.recipe):
                others.append(each)
                break
        else:
            alike.append([each])
    first = {others[0].adapter: others for others in alike}
    found = StudyRecipes.read(tree, first)
    evaluations: dict[Evaluated, list[AdapterId]] = {}
    for each in recorded:
        if each.evaluated is not None:
            evaluations.setdefault(each.evaluated, []).append(each.adapter)
    for group in found.groups:
        group.adapters = [each.adapter for adapter in group.adapters for each in first[adapter]]
    groups = sorted(found.groups, key=lambda group: -len(group.adapters))
    return replace(found, groups=tuple(groups), evaluations=evaluations)


def _of_another_recipe(cell: Cell, most: RecipeGroup, own: RecipeGroup) -> Cell:
    """Return a cell of another recipe than most of its series have."""
    words = f"another recipe than {len(most.adapters)} of its series: {', '.join(most.changes_to(own))}"
    state = State.STALE if cell.state is State.COMPLETE else cell.state
    return replace(cell, state=state, reason=", ".join(filter(None, (cell.reason, words))))
