"""The plan of a call of apply_tuning: what it would do with each artist in each condition."""

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mimicry.common.files import existing_part, utc_now
from mimicry.common.text import first_few
from mimicry.study import AdapterId, Condition, State
from mimicry.tuning.adapters import AdapterFolder, Bookmark
from mimicry.tuning.hub.names import token_problems
from mimicry.tuning.planning.recipes import StudyRecipes, mixed_notes, study_remarks
from mimicry.tuning.planning.target import Call, Request, Target


@dataclass(frozen=True)
class Overwrite:
    """An overwrite that is to be carried out; `done` are the adapters that it has trained already.

    `trainings` are those of the selected adapters as they were planned, before another call trains one.
    """

    name: str = field(default_factory=lambda: f"{utc_now()} {secrets.token_hex(4)}")
    done: frozenset[AdapterId] = frozenset()
    trainings: Mapping[AdapterId, list[str]] = field(default_factory=dict)

    @classmethod
    def find(
        cls, folders: Iterable[tuple[AdapterId, AdapterFolder]], bookmarks: Mapping[str, Mapping[str, Any]]
    ) -> "Overwrite":
        """Return the unfinished overwrite of the selected adapters, or a new one."""
        open_names: set[str] = set()
        done: dict[AdapterId, str] = {}
        trainings: dict[AdapterId, list[str]] = {}
        for adapter, folder in folders:
            trainings[adapter] = training_of(folder)
            mark = Bookmark.from_json(bookmarks.get(adapter.key, {})).overwrite
            if mark is None or not isinstance(mark.get("name"), str):
                continue
            if trainings[adapter] not in ([], mark.get("replaces")):
                done[adapter] = mark["name"]
            else:
                open_names.add(mark["name"])
        if not open_names:
            return cls(trainings=trainings)
        # Two calls may have begun at once: what is done in either is done.
        finished = frozenset(adapter for adapter, name in done.items() if name in open_names)
        return cls(max(open_names), finished, trainings)


# What a user may do about an adapter of another recipe or other images.
WAYS_FOR_STALE = "--retrain-stale replaces it, --variant NAME trains this recipe next to it"
# Kept in the bookmark of an artist whose adapter was set aside, until it is trained again.
OVERWRITTEN = "set aside by --overwrite"
RETRAINED = "set aside by --retrain-stale"
# The states that a plan has, in the order in which they are counted, and the word for each.
_PLANNED = {
    State.WAITING: "train",
    State.COMPLETE: "complete",
    State.STALE: "stale",
    State.RUNNING: "claimed",
    State.QUEUED: "queued",
    State.BLOCKED: "blocked",
    State.NO_DATA: "no data",
}


def plan_word(target: Target) -> str:
    return _PLANNED[target.state]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All targets of a call, in the order of training; one request for each condition and series.

    `absent` are the conditions without images, that nobody has typed, with the reason.
    """

    requests: tuple[Request, ...]
    targets: tuple[Target, ...]
    absent: tuple[tuple[Condition, str], ...] = ()
    # Of the adapters that stay as they are, by series; none are read when there is nothing to train.
    recipes: Mapping[str, StudyRecipes] = field(default_factory=dict)
    overwrite: Overwrite | None = None
    # What is most likely not meant, of the call as a whole.
    warnings: tuple[str, ...] = ()

    @property
    def call(self) -> Call:
        return self.requests[0]

    @property
    def recipe_requests(self) -> list[Request]:
        """One request of each series: what they ask for beside the images is the same for all conditions."""
        found: dict[str, Request] = {}
        for request in self.requests:
            found.setdefault(request.series, request)
        return list(found.values())

    def study_recipes(self, request: Request) -> StudyRecipes:
        return self.recipes.get(request.series, StudyRecipes())

    @property
    def remarks(self) -> tuple[str, ...]:
        remarks = list(self.warnings)
        if self.absent:
            names = [str(condition) for condition, _ in self.absent]
            remarks.append(f"without images, so left out: {first_few(names)}")
        for request in self.recipe_requests:
            series = f"{request.series}: " if self.has_several_series else ""
            remarks += [f"{series}{said}" for said in study_remarks(request, self.study_recipes(request))]
        return tuple(remarks)

    @cached_property
    def has_several_conditions(self) -> bool:
        return len({request.condition for request in self.requests}) > 1

    @cached_property
    def has_several_series(self) -> bool:
        return len({request.series for request in self.requests}) > 1

    def name_of(self, target: Target) -> str:
        """Return what tells a target from the others of the plan: as much as it needs."""
        return f"{self._place(target)}{target.artist}"

    def short_name_of(self, target: Target) -> str:
        """Return `name_of` without split and style, for where there is little room."""
        return f"{self._place(target)}{target.artist.name}"

    def _place(self, target: Target) -> str:
        series = f"{target.request.series} " if self.has_several_series else ""
        return series + (f"{target.request.condition} " if self.has_several_conditions else "")

    def overwrite_mark(self, target: Target) -> dict[str, Any] | None:
        """Return what the bookmark of a target says of the --overwrite that is to train it again."""
        if self.overwrite is None or target.state not in (State.WAITING, State.RUNNING):
            return None
        return {"name": self.overwrite.name, "replaces": self.overwrite.trainings[target.adapter]}

    def of(self, *states: State) -> list[Target]:
        return [target for target in self.targets if target.state in states]

    def known_seconds(self) -> list[float]:
        """Return what the adapters took that are complete, by their records: so do others like them."""
        records = (target.folder.readable_run.content for target in self.of(State.COMPLETE))
        return [seconds for record in records if isinstance(seconds := record.get("seconds"), (int, float))]

    def counts(self) -> dict[str, int]:
        counted = Counter(target.state for target in self.targets)
        return {word: counted[state] for state, word in _PLANNED.items()}


def with_recipes(plan: Plan) -> Plan:
    """Return the plan with the recipes of the study and warnings, where something is to be trained."""
    recipes: dict[str, StudyRecipes] = {}
    warnings: list[str] = []
    notes: dict[str, tuple[str, ...]] = {}
    active = {target.request.series for target in plan.of(State.WAITING, State.RUNNING)}
    for request in plan.recipe_requests:
        if request.series not in active:
            continue
        found = tuple(request.stack.traits.warnings(request.stack_config))
        warnings += found
        if request.spec.recipe is not None:
            recipes[request.series] = recipes_that_stay(plan, request)
        notes[request.series] = (
            *found,
            *mixed_notes(request, recipes.get(request.series, StudyRecipes())),
        )
    targets = [
        replace(target, notes=notes[target.request.series])
        if target.state in (State.WAITING, State.RUNNING)
        else target
        for target in plan.targets
    ]
    return replace(plan, recipes=recipes, warnings=tuple(dict.fromkeys(warnings)), targets=tuple(targets))


def recipes_that_stay(plan: Plan, request: Request) -> StudyRecipes:
    """Read the recipes of a series as they are now, without what the plan is to train."""
    replaced = {target.adapter for target in plan.of(State.WAITING)}
    return StudyRecipes.read(request.tree, request.tree.adapters(request.series), without=replaced)


def training_of(folder: AdapterFolder) -> list[str]:
    """Return what tells the training of an adapter from any other, by its times too; or nothing."""
    if not folder.has_weights:
        return []
    run = folder.readable_run
    return [str(run.content.get(key)) for key in ("started_at", "finished_at")] + [str(run.weights_sha256)]


def batch_problems(
    stack_problems: Sequence[str], output_root: Path, adapter_count: int, needed_bytes: int, *, uploads: bool
) -> list[str]:
    """Return what forbids training so many adapters below `output_root`, with what the stack says."""
    problems = [*(token_problems() if uploads else []), *stack_problems]
    folder = existing_part(output_root)
    if not os.access(folder, os.W_OK):
        problems.append(f"{folder} is not writable; name another tree with --data-root")
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        problems.append(
            f"{adapter_count} adapters need about {needed_bytes / 1e9:.2f} GB on the disk of {folder}, which "
            f"has {free / 1e9:.2f} GB free; make room, or train fewer at once with --style or --artist"
        )
    return problems
