"""What is to be drawn: which adapters, which prompts and seeds, and what of it lies there. No torch."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from mimicry.common.errors import UsageError
from mimicry.common.files import sha256_file, sha256_text
from mimicry.study import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    AdapterId,
    Artist,
    Condition,
    State,
    StudyTree,
    default_prompts,
    in_order,
    read_settings,
)
from mimicry.tuning.adapters import (
    WEIGHTS,
    AdapterFolder,
    AdapterSpec,
    AdapterStatus,
    TrainingRun,
    judge_adapter,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.recipes import StudyRecipes
from mimicry.tuning.status.study_status import StudyStatus

_LONGEST_NAME = 120
_FROM_RECORD = ("revision", "variant", "resolution", "mixed_precision", "max_sequence_length")
_MODEL = "pretrained_model_name_or_path"


@dataclass(frozen=True)
class Picture:
    """One picture: where it belongs, how it is drawn, and whether it is."""

    path: Path
    prompt: str
    seed: int
    settings: Mapping[str, Any]
    state: State


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """All pictures of one adapter, in `folder`; of the base model, where there is no adapter.

    `config` says how it draws, `problem` why it cannot. `recipe` tells its recipe from others of the study;
    `unpaired` says how its images do not pair with the original art.
    """

    adapter: AdapterId | None = None
    adapter_dir: Path | None = None
    folder: Path
    config: TuningConfig
    pictures: tuple[Picture, ...] = ()
    problem: str = ""
    recipe: str = ""
    unpaired: str = ""

    @property
    def name(self) -> str:
        if self.adapter is None:
            return "the base model"
        variant = "" if self.adapter.variant is None else f"{self.adapter.variant} "
        return f"{variant}{self.condition}/{self.artist}"

    @property
    def condition(self) -> Condition | None:
        return None if self.adapter is None else self.adapter.condition

    @property
    def artist(self) -> Artist | None:
        return None if self.adapter is None else self.adapter.artist

    def of(self, state: State) -> list[Picture]:
        return [picture for picture in self.pictures if picture.state is state]


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What a call asks for; without `prompts`, each adapter has its own, see `default_prompts`.

    `changes` are hyper-parameters that were typed instead of what stands in an adapter's record.
    """

    study: StudyStatus
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    steps: int = DEFAULT_STEPS
    guidance: float = DEFAULT_GUIDANCE
    base: bool = False
    overwrite: bool = False
    changes: Mapping[str, Any]

    @property
    def tree(self) -> StudyTree:
        return self.study.tree

    def config_of(self, run: TrainingRun) -> TuningConfig:
        options, paths = run.options or {}, run.paths or {}
        known = {name: options.get(name) for name in _FROM_RECORD}
        known["cache_dir"] = paths.get("cache_dir")
        # A local base model's path stands apart, whole and as it was typed.
        known[_MODEL] = options.get(_MODEL) or paths.get("base_model") or paths.get(_MODEL)
        stated = {name: value for name, value in known.items() if value is not None}
        return TuningConfig(**{**stated, **self.changes})


def plan_samples(request: SampleRequest) -> list[SampleSet]:
    """Return the sets of all chosen adapters; raises UsageError where filters leave none."""
    planner, matrix = _Planner(request), request.study.matrix
    sets = [planner.adapter_set(cell) for cell in request.study.cells if cell.weights is not None]
    if not sets:
        raise UsageError(
            f"there is no adapter of these artists in {request.tree.lora}, in "
            f"{' or '.join(matrix.series)}; train one with apply_tuning"
        )
    by_series: dict[str, list[AdapterId]] = defaultdict(list)
    for adapter in (one.adapter for one in sets if one.adapter):
        by_series[adapter.series].append(adapter)
    for adapters in by_series.values():
        sets = with_recipes(sets, StudyRecipes.read(request.tree, adapters))
    return [planner.base_set(sets), *sets] if request.base else sets


def with_recipes(sets: Sequence[SampleSet], recipes: StudyRecipes) -> list[SampleSet]:
    """Return the sets, those of `recipes` with theirs where these are several: what differs from most."""
    if not recipes.is_mixed:
        return list(sets)
    known = {*recipes.by_adapter(), *recipes.unknown}
    labels: dict[AdapterId, str] = {}
    most = recipes.groups[0]
    for number, group in enumerate(recipes.groups, start=1):
        words = ", ".join(most.changes_to(group)) if number > 1 else ""
        labels |= dict.fromkeys(group.adapters, f"recipe {number}" + (f": {words}" if words else ""))
    unknown = "recipe not known"
    return [
        replace(found, recipe=labels.get(found.adapter, unknown)) if found.adapter in known else found
        for found in sets
    ]


def of_first_series(sets: Sequence[SampleSet]) -> tuple[list[SampleSet], str]:
    """Return the sets of the base model and of the first series of adapters, and the name of that series."""
    series = next(found.adapter.series for found in sets if found.adapter is not None)
    return [found for found in sets if found.adapter is None or found.adapter.series == series], series


def artists_of(sets: Iterable[SampleSet]) -> list[Artist]:
    return list(dict.fromkeys(found.artist for found in sets if found.artist is not None))


def conditions_of(sets: Iterable[SampleSet]) -> list[Condition]:
    """Return the conditions of `sets`, each once: unprotected first, each before its countered ones."""
    return in_order(found.condition for found in sets if found.condition is not None)


def file_name(prompt: str, seed: int) -> str:
    """Return the name of a picture, of letters that every file system takes; no two prompts share one."""
    words = re.sub(r"[^A-Za-z0-9.-]+", "_", prompt).strip("_.")[:_LONGEST_NAME]
    if words.replace("_", " ") != prompt:
        words += "_" + sha256_text(prompt)[:8]
    return f"{words.lstrip('_-')}_{seed}.png"


class _Planner:
    """Plans one adapter after the other; each base model is looked at once."""

    def __init__(self, request: SampleRequest) -> None:
        self._request = request
        self._identity = cache(_model_identity)

    def adapter_set(self, cell: AdapterStatus) -> SampleSet:
        request, adapter, run = self._request, cell.adapter, cell.run
        folder = request.tree.adapter_dir(adapter)
        config = request.config_of(run)
        empty = SampleSet(
            adapter=adapter,
            adapter_dir=folder,
            folder=request.tree.samples_of(adapter),
            config=config,
            unpaired="; ".join(run.unpaired),
        )
        # Every value is read, unless it is remembered that they are good: readers look at these pictures.
        weights = judge_adapter(AdapterFolder(folder, ADAPTER_FORMAT), AdapterSpec(), None, full=True)
        if weights.state is State.BROKEN:
            return replace(empty, problem=weights.reason)
        if cell.other_images:
            return replace(
                empty,
                problem=f"{folder} is not what its folder says, so it draws nothing: {cell.other_images}",
            )
        recorded, identity = (run.recipe or {}).get("base_model"), self._identity(config)
        if recorded is not None and identity is not None and recorded != identity:
            return replace(
                empty,
                problem=f"{folder} was trained on another base model; name it with "
                f"--pretrained-model-name-or-path",
            )
        instance_prompt = (run.options or {}).get("instance_prompt") or config.instance_prompt
        facts = {
            "adapter": run.weights_sha256 or sha256_file(folder / WEIGHTS),
            "condition": str(adapter.condition),
            "artist": str(adapter.artist),
        }
        prompts = request.prompts or default_prompts(instance_prompt)
        return replace(empty, pictures=self._pictures(empty.folder, config, prompts, facts))

    def base_set(self, sets: Sequence[SampleSet]) -> SampleSet:
        """Return what the base model draws: all prompts of `sets`, in the way of the first of them."""
        prompts = self._request.prompts or list(
            dict.fromkeys(picture.prompt for found in sets for picture in found.pictures)
        )
        first = sets[0].adapter
        assert first is not None  # this is the only set without one
        folder = self._request.tree.samples_of_base(first.series)
        config = sets[0].config
        pictures = self._pictures(folder, config, prompts, {"adapter": None})
        return SampleSet(config=config, folder=folder, pictures=pictures)

    def _pictures(
        self, folder: Path, config: TuningConfig, prompts: Iterable[str], facts: Mapping[str, Any]
    ) -> tuple[Picture, ...]:
        request = self._request
        pictures = []
        for prompt, seed in product(dict.fromkeys(prompts), dict.fromkeys(request.seeds)):
            path = folder / file_name(prompt, seed)
            settings = {
                **facts,
                "base_model": self._identity(config),
                "variant": config.variant,
                "mixed_precision": config.mixed_precision,
                "max_sequence_length": config.max_sequence_length,
                "prompt": prompt,
                "seed": seed,
                "resolution": config.resolution,
                "steps": request.steps,
                "guidance": request.guidance,
            }
            pictures.append(Picture(path, prompt, seed, settings, _state(path, settings, request.overwrite)))
        return tuple(pictures)


def _model_identity(config: TuningConfig) -> Mapping[str, Any] | None:
    model = BaseModel.find(config)
    return None if model is None else model.identity()


def _state(path: Path, settings: Mapping[str, Any], overwrite: bool) -> State:
    try:
        found = read_settings(path)
    except FileNotFoundError:
        return State.WAITING
    wanted = json.loads(json.dumps(settings))
    if found is not None and wanted["base_model"] is None:
        wanted["base_model"] = found.get("base_model")
    if found == wanted:
        return State.COMPLETE
    return State.WAITING if overwrite else State.STALE


def is_drawn(picture: Picture) -> bool:
    """Return whether a picture that was to be drawn is there by now, as another call has drawn it."""
    return _state(picture.path, picture.settings, overwrite=False) is State.COMPLETE


def pairs_for_sheet(sets: Sequence[SampleSet], artist: Artist, count: int) -> list[tuple[str, int]]:
    """Return which prompts and seeds a contact sheet shows of an artist: all prompts before a second seed."""
    pairs = {
        (picture.seed, picture.prompt): None
        for found in sets
        if found.artist == artist
        for picture in found.pictures
    }
    seeds = list(dict.fromkeys(seed for seed, _ in pairs))
    ordered = [(prompt, seed) for wanted in seeds for seed, prompt in pairs if seed == wanted]
    return ordered[:count]
