"""What a plan says of checkpoints: from where a training goes on, and what it drops."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.files import sha256_file
from mimicry.study.images import ImageFolder
from mimicry.study.states import State
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.checkpoint_facts import PARTS, SCHEMA
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    BASE,
    CONFIG,
    asked_for,
    original,
    output_dir,
    plan_of,
    put_adapter,
    target_of,
    write_images,
)


def put_checkpoint(tree: StudyTree, step: int, config: TuningConfig = CONFIG, **facts: Any) -> Path:
    """Write a checkpoint of Anna's training; its tensors are no tensors, which a plan does not read."""
    folder = output_dir(tree) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in PARTS:
        (folder / name).write_text(name)
    content = {
        "schema": SCHEMA,
        "step": step,
        "recipe": recipe(config, BASE.identity(), OWN_TRAINER),
        "images": ImageFolder.read(original(tree)).records(),
        "class_images": None,
        "sha256": {name: sha256_file(folder / name) for name in PARTS},
    }
    (folder / "checkpoint.json").write_text(json.dumps(content | facts))
    return folder


def target(tree: StudyTree, **asked: Any) -> Target:
    return target_of(plan_of(tree, **asked))


def test_the_step_that_it_goes_on_from(tree: StudyTree) -> None:
    put_checkpoint(tree, 27)
    put_checkpoint(tree, 9)

    for full in (False, True):
        assert target(tree, full=full).reason == "resumes at step 27 of 500"


def test_a_checkpoint_of_another_recipe_is_dropped_and_an_older_one_used(tree: StudyTree) -> None:
    put_checkpoint(tree, 300, replace(CONFIG, learning_rate=3e-4))
    put_checkpoint(tree, 27)

    assert target(tree).reason == (
        "resumes at step 27 of 500; drops checkpoint-300: it belongs to another run: "
        "learning_rate 0.0003 -> 0.0001"
    )


def test_other_images_drop_it_and_are_named(tree: StudyTree) -> None:
    put_checkpoint(tree, 27)
    write_images(original(tree), ("04_new",))

    assert target(tree).reason == (
        "drops checkpoint-27: it belongs to another run: other images: new '04_new.png'"
    )


def test_a_flipped_byte_is_found_in_full_and_a_missing_file_at_once(tree: StudyTree) -> None:
    folder = put_checkpoint(tree, 27)
    (folder / PARTS[0]).write_text(PARTS[0][::-1])

    assert target(tree).reason.startswith("resumes at step 27")
    assert target(tree, full=True).reason == (f"drops checkpoint-27: it is not whole: {PARTS[0]} is damaged")
    (folder / PARTS[0]).unlink()
    assert target(tree).reason == "drops checkpoint-27: it is not whole: No such file or directory"


def test_a_new_beginning_drops_all(tree: StudyTree) -> None:
    put_checkpoint(tree, 27)

    anew = target(tree, config=replace(CONFIG, resume_from_checkpoint="none"))

    assert anew.reason == "drops checkpoint-27: a new beginning was asked for"


def test_one_that_was_asked_for_by_name(tree: StudyTree) -> None:
    put_checkpoint(tree, 9)
    put_checkpoint(tree, 27)

    found = target(tree, config=replace(CONFIG, resume_from_checkpoint="checkpoint-9"))

    assert found.reason == "resumes at step 9 of 500; drops checkpoint-27: step 9 was asked for"


def test_one_that_was_asked_for_and_does_not_fit_blocks_the_artist(tree: StudyTree) -> None:
    put_checkpoint(tree, 9)

    found = target(
        tree, asked=asked_for(seed=7), config=replace(CONFIG, resume_from_checkpoint="checkpoint-9")
    )

    assert found.state is State.BLOCKED
    assert "checkpoint-9: it belongs to another run: seed 42 -> 7" in found.reason


def test_beside_an_adapter_that_is_trained_again_it_is_not_used(tree: StudyTree) -> None:
    put_adapter(tree)
    put_checkpoint(tree, 27)

    assert target(tree, overwrite=True).reason == "--overwrite sets its adapter aside"


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 0}', '{"schema": 1, "step": "x"}'])
def test_one_that_cannot_be_read_is_dropped(content: str, tree: StudyTree) -> None:
    (put_checkpoint(tree, 27) / "checkpoint.json").write_text(content)

    assert target(tree).reason.startswith("drops checkpoint-27: it ")
