"""The record of a training whose stack writes none: made by the orchestrator, compared as any other."""

from pathlib import Path

import pytest

from mimicry.common.errors import TrainingFailed
from mimicry.common.files import read_json, sha256_file
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.adapters.recipe import recipe_hash
from mimicry.tuning.execution.records import UnrecordedTraining
from mimicry.tuning.planning.target import Target
from tests.small_study import ANNA, listing, original, plan_of, put_adapter, target_of, write_images
from tests.tuning.lora_files import save_lora
from tests.tuning.quick_studio import QuickStudio


@pytest.fixture
def target(tree: StudyTree) -> Target:
    return target_of(plan_of(tree))


def train(target: Target) -> Path:
    return save_lora(target.folder.weights)


def test_it_tells_what_was_trained_and_on_what(target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    weights = train(target)

    training.record_if_missing(7)

    run = read_json(target.folder.record)
    recipe = target.request.spec.recipe
    assert recipe is not None
    assert (run["status"], run["stack"], run["steps"]) == ("complete", "hf_diffusers", 7)
    assert (run["recipe"], run["recipe_hash"]) == (recipe, recipe_hash(recipe))
    files = [{key: image[key] for key in ("name", "size", "sha256")} for image in run["images"]]
    assert files == target.images.records()
    assert [image["width"] for image in run["images"]] == [8, 8, 8]
    assert run["unpaired"] == []
    assert run["warnings"] == list(target.warnings)
    assert (run["weights"]["sha256"], run["weights"]["bytes"]) == (
        sha256_file(weights),
        weights.stat().st_size,
    )
    assert target.judge().state is State.COMPLETE


def test_other_images_make_it_stale(target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    train(target)
    training.record_if_missing(7)

    write_images(target.images.path, salt="another")

    found = target.judge()
    assert found.state is State.STALE
    assert found.reason == "other images: changed '01_tree.png', '02_boat.png', '03_hills.png'"


def test_a_record_that_is_there_stays(tree: StudyTree, target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    folder = put_adapter(tree)
    before = listing(folder)

    training.record_if_missing(7)

    assert listing(folder) == before


def test_what_was_trained_on_changed_images_is_set_aside(target: Target) -> None:
    training = UnrecordedTraining.begin(target)
    weights = train(target)
    write_images(target.images.path, salt="another")

    with pytest.raises(TrainingFailed, match="images were changed while it was trained on them"):
        training.record_if_missing(7)

    assert not weights.exists()
    assert len(list((target.folder.path / "set_aside").glob(f"*-stale/{weights.name}"))) == 1
    assert target.judge().state is State.PENDING


def test_with_captions_the_next_call_finds_it_complete(quick_studio: QuickStudio) -> None:
    caption = original(quick_studio.tree) / "01_tree.txt"
    caption.write_text("a tree, sks")
    words = ("--artist=Anna_Berg", "--captions")

    assert quick_studio.tune(*words).out.splitlines()[-1] == "1 trained"
    assert quick_studio.tune(*words).out.splitlines()[-1] == "1 skipped"
    assert quick_studio.trained() == [ANNA.name]
    caption.write_text("a boat, sks")
    assert "other captions" in quick_studio.tune(*words).out
