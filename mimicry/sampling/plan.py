"""What is to be drawn: which adapters, which prompts and seeds, and what of it lies there. No torch."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken, Problems, UsageError, nearest
from mimicry.common.files import sha256_text
from mimicry.study.images import ImageFolder
from mimicry.study.sample_files import read_settings
from mimicry.study.selection import Selection
from mimicry.study.tree import NONE, Artist, Condition, StudyTree, folders_in
from mimicry.tuning.adapters.folder import WEIGHTS, check_adapter, read_training_run, recorded_rank
from mimicry.tuning.options.config import TuningConfig

# What an adapter is asked to paint, beside its instance prompt, when no prompt is given.
SUBJECTS = ("a boat", "a house", "a tree")
_STYLE = " in the style of "
_LONGEST_NAME = 120


class State(Enum):
    """What becomes of a picture."""

    DRAW = "to draw"
    THERE = "there"
    STALE = "stale"


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
    """All pictures of one adapter; of the base model, where there is no condition and no artist.

    `problem` says why it cannot draw; then it has no pictures.
    """

    condition: Condition | None = None
    artist: Artist | None = None
    adapter_dir: Path | None = None
    pictures: tuple[Picture, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        return "the base model" if self.condition is None else f"{self.condition}/{self.artist}"

    def of(self, state: State) -> list[Picture]:
        return [picture for picture in self.pictures if picture.state is state]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a call asks for. Without `prompts`, each adapter has its own; see `default_prompts`.

    `identity` is that of the base model; None for one that is not on this machine yet.
    """

    tree: StudyTree
    stack: str
    protections: tuple[str, ...] = ()
    countermeasures: tuple[str, ...] = ()
    selection: Selection
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    base: bool = False
    overwrite: bool = False
    config: TuningConfig
    identity: Mapping[str, Any] | None
    drawing: Mapping[str, Any]


def make_plan(request: Request) -> list[SampleSet]:
    """Return the sets of all chosen adapters, the base model's first when it is asked for.

    Raises:
        UsageError: a filter matches nothing, or there is no adapter.
    """
    problems = Problems()
    conditions: list[Condition] = []
    artists: list[Artist] = []
    with problems:
        conditions = _conditions(request)
    with problems:
        artists = _artists(request)
    problems.raise_any()
    sets = [
        found
        for artist in artists
        for condition in conditions
        if (found := _adapter_set(request, condition, artist)) is not None
    ]
    if not sets:
        outputs = request.tree.stack_outputs(request.stack)
        raise UsageError(f"there is no adapter of these artists below {outputs}; train one with apply_tuning")
    if request.base:
        prompts = request.prompts or list(
            dict.fromkeys(picture.prompt for found in sets for picture in found.pictures)
        )
        folder = request.tree.mimic_art(request.stack) / "base"
        sets.insert(0, SampleSet(pictures=_pictures(request, folder, prompts, {"adapter": None})))
    return sets


def artists_of(sets: Iterable[SampleSet]) -> list[Artist]:
    """Return the artists of `sets`, each once, in their order."""
    return list(dict.fromkeys(found.artist for found in sets if found.artist is not None))


def conditions_of(sets: Iterable[SampleSet]) -> list[Condition]:
    """Return the conditions of `sets`, each once: unprotected first, each before its countered ones."""
    return sorted({found.condition for found in sets if found.condition is not None}, key=_rank)


def default_prompts(instance_prompt: str) -> list[str]:
    """Return the prompt that an adapter was trained with, and the same with subjects."""
    head, style, tail = instance_prompt.partition(_STYLE)
    with_subjects = [
        f"{head} of {subject}{style}{tail}" if style else f"{subject}, {instance_prompt}"
        for subject in SUBJECTS
    ]
    return [instance_prompt, *with_subjects]


def file_name(prompt: str, seed: int) -> str:
    """Return the name of a picture, of letters that every file system takes; no two prompts share one."""
    words = re.sub(r"[^A-Za-z0-9.-]+", "_", prompt).strip("_.")[:_LONGEST_NAME]
    if words.replace("_", " ") != prompt:
        words += "_" + sha256_text(prompt)[:8]
    return f"{words.lstrip('_-')}_{seed}.png"


def _rank(condition: Condition) -> tuple[bool, str, bool, str]:
    protection, countermeasure = condition.protection, condition.countermeasure
    return protection != NONE, protection, countermeasure != NONE, countermeasure


def _conditions(request: Request) -> list[Condition]:
    outputs = request.tree.stack_outputs(request.stack)
    pairs = [name.split("__", 1) for name in folders_in(outputs) if "__" in name]
    problems = [
        f"{option} {name}: there is no adapter of it below {outputs}; {nearest(name, known)}"
        for option, names, known in (
            ("--protection", request.protections, sorted({protection for protection, _ in pairs})),
            ("--countermeasure", request.countermeasures, sorted({other for _, other in pairs})),
        )
        for name in names
        if name not in known
    ]
    if problems:
        raise UsageError(*problems)
    chosen = [
        Condition(protection, countermeasure)
        for protection, countermeasure in pairs
        if (not request.protections or protection in request.protections)
        and (not request.countermeasures or countermeasure in request.countermeasures)
    ]
    return sorted(chosen, key=_rank)


def _artists(request: Request) -> list[Artist]:
    tree = request.tree
    outputs = tree.stack_outputs(request.stack)
    trained = {
        artist for name in folders_in(outputs) if "__" in name for artist in tree.artists(outputs / name)
    }
    known = sorted({*tree.artists(tree.original_art), *trained})
    # The pilots are those of apply_tuning: it picks them by their original art.
    return request.selection.choose(
        known, lambda artist: bool(ImageFolder.read(tree.images_of(tree.original_art, artist)).names)
    )


def _adapter_set(request: Request, condition: Condition, artist: Artist) -> SampleSet | None:
    folder = request.tree.output_dir(request.stack, condition, artist)
    if not (folder / WEIGHTS).exists():
        return None
    empty = SampleSet(condition=condition, artist=artist, adapter_dir=folder)
    try:
        run = read_training_run(folder) or {}
        adapter = check_adapter(folder, recorded_rank(run))
    except AdapterBroken as error:
        return replace(empty, problem=str(error))
    recorded = run.get("recipe", {}).get("base_model")
    if recorded is not None and request.identity is not None and recorded != request.identity:
        return replace(
            empty,
            problem=f"{folder} was trained on another base model; name it with "
            f"--pretrained-model-name-or-path",
        )
    instance_prompt = run.get("options", {}).get("instance_prompt") or request.config.instance_prompt
    prompts = request.prompts or default_prompts(instance_prompt)
    target = request.tree.images_of(request.tree.mimic_art(request.stack) / str(condition), artist)
    facts = {"adapter": adapter.sha256, "condition": str(condition), "artist": str(artist)}
    return replace(empty, pictures=_pictures(request, target, prompts, facts))


def _pictures(
    request: Request, folder: Path, prompts: Iterable[str], facts: Mapping[str, Any]
) -> tuple[Picture, ...]:
    pictures = []
    for prompt in dict.fromkeys(prompts):
        for seed in dict.fromkeys(request.seeds):
            path = folder / file_name(prompt, seed)
            settings = {
                **facts,
                "base_model": request.identity,
                "variant": request.config.variant,
                "mixed_precision": request.config.mixed_precision,
                "max_sequence_length": request.config.max_sequence_length,
                "prompt": prompt,
                "seed": seed,
                **request.drawing,
            }
            pictures.append(Picture(path, prompt, seed, settings, _state(path, settings, request.overwrite)))
    return tuple(pictures)


def _state(path: Path, settings: Mapping[str, Any], overwrite: bool) -> State:
    try:
        found = read_settings(path)
    except FileNotFoundError:
        return State.DRAW
    wanted = json.loads(json.dumps(settings))
    if found is not None and wanted["base_model"] is None:
        wanted["base_model"] = found.get("base_model")
    if found == wanted:
        return State.THERE
    return State.DRAW if overwrite else State.STALE


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
