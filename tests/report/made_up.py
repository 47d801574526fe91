"""A study whose adapters nobody trained: evaluation losses are what a test says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from mimicry.report.content import Content, read_content
from mimicry.study.drawn_images import save_sample
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe, recipe_hash
from mimicry.tuning.options.study_file import StudyFile
from tests.small_study import ANNA, BASE, BORIS, CLARA, CONFIG, COUNTERED, DORA, MIST, ORIGINAL, write_adapter
from tests.tuning.status.study_states import parameters_of

STACK = "hf_diffusers"
START = 0.5
# By artist: of the original, under mist, and countered.
LOSSES = {
    ANNA: (0.30, 0.36, 0.31),
    BORIS: (0.28, 0.32, 0.30),
    CLARA: (0.35, 0.40, 0.36),
    DORA: (0.33, 0.38, 0.345),
}
CONDITIONS = (ORIGINAL, MIST, COUNTERED)
PROMPT = "a painting in the style of sks"


def eval_loss(end: float, on: str = "held-out", **changes: Any) -> dict[str, Any]:
    """Return what a record holds of an evaluation."""
    return {"start": START, "end": end, "on": on, "images": 4, "timesteps": [800.0, 200.0], **changes}


def put(
    tree: StudyTree,
    condition: Condition,
    artist: Artist,
    end: float | None,
    *,
    seed: int = 42,
    variant: str | None = None,
    options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Write a complete adapter with this loss; `options` change the recipe, `fields` the record."""
    config = replace(CONFIG, seed=seed, **(options or {}))
    images = tree.images_of(tree.source(condition).root, artist)
    folder = tree.adapter_dir(AdapterId(STACK, condition, artist, variant))
    facts: dict[str, Any] = {
        "eval_loss": {"skipped": "--eval_timesteps is 0"} if end is None else eval_loss(end),
        "recipe_hash": recipe_hash(recipe(config, BASE.identity(), OWN_TRAINER)),
        "numerics": {"device": "cuda", "torch": "2.9.0"},
        "finished_at": "2026-01-02T03:05:05+00:00",
    }
    return write_adapter(folder, images, config=config, **(facts | fields))


def put_all(tree: StudyTree, *, seed: int = 42, variant: str | None = None, shift: float = 0.0) -> None:
    """Write the adapters of all artists and conditions; `shift` is added to all but the original's losses."""
    for artist, ends in LOSSES.items():
        for condition, end in zip(CONDITIONS, ends, strict=True):
            moved = end + (0 if condition == ORIGINAL else shift)
            put(tree, condition, artist, moved, seed=seed, variant=variant)


def content_of(tree: StudyTree, **chosen: Any) -> Content:
    return read_content(parameters_of(tree, stack=STACK, **chosen), StudyFile())


def put_samples(
    tree: StudyTree,
    condition: Condition | None,
    artist: Artist = ANNA,
    *,
    prompts: Sequence[str] = (PROMPT,),
    seeds: Sequence[int] = (0,),
    colour: tuple[int, int, int] = (90, 120, 60),
    side: int = 24,
    **settings: Any,
) -> list[Path]:
    """Write pictures as `mimicry samples` would draw them; without a condition, with the base model."""
    facts: dict[str, Any] = {"adapter": None}
    folder = tree.samples_of_base(STACK)
    if condition is not None:
        adapter = AdapterId(STACK, condition, artist)
        folder = tree.samples_of(adapter)
        run = AdapterFolder(tree.adapter_dir(adapter)).readable_run
        facts = {"adapter": run.weights_sha256, "condition": str(condition), "artist": str(artist)}
    made = []
    for prompt in prompts:
        for seed in seeds:
            path = folder / f"{prompt.replace(' ', '_')}_{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = {**facts, "prompt": prompt, "seed": seed, "resolution": side, "steps": 8, "guidance": 3.0}
            save_sample(path, Image.new("RGB", (side, side), colour), {**drawn, **settings})
            made.append(path)
    return made
