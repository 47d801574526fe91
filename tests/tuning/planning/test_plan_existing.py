"""Plans where something is there already: kept, trained again, or blocked as a twin."""

import json
import shutil
from typing import Any

from mimicry.study.tree import Condition, State, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.planning.plan import OVERWRITTEN
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    COUNTERED,
    DORA,
    GLAZE_COUNTERED,
    MIST,
    asked_for,
    judged,
    original,
    output_dir,
    plan_of,
    put_adapter,
    target_of,
)
from tests.tuning.lora_files import save_lora


def test_a_complete_adapter_is_left_alone(tree: StudyTree) -> None:
    put_adapter(tree)

    for full in (False, True):
        plan = plan_of(tree, full=full)
        assert judged(target_of(plan)) == (State.COMPLETE, State.COMPLETE)
        assert plan.counts() == {
            "train": 3,
            "complete": 1,
            "stale": 0,
            "claimed": 0,
            "queued": 0,
            "blocked": 0,
            "no data": 0,
        }
    assert target_of(plan_of(tree, MIST)).state is State.WAITING


def test_an_adapter_of_other_options_is_stale_and_says_which(tree: StudyTree) -> None:
    put_adapter(tree)

    target = target_of(plan_of(tree, asked=asked_for(max_train_steps=7, seed=1)))

    assert judged(target) == (State.STALE, State.STALE)
    assert target.reason.startswith("max_train_steps 500 -> 7, seed 42 -> 1; kept: ")
    assert "--retrain-stale" in target.reason
    assert "--variant" in target.reason


def test_another_rank_is_stale_and_not_broken(tree: StudyTree) -> None:
    put_adapter(tree)

    target = target_of(plan_of(tree, asked=asked_for(rank=8), full=True))

    assert judged(target) == (State.STALE, State.STALE)
    assert "rank 4 -> 8" in target.reason


def test_an_option_that_defines_nothing_leaves_it_complete(tree: StudyTree) -> None:
    put_adapter(tree)

    assert target_of(plan_of(tree, asked=asked_for(cache_latents=False))).state is State.COMPLETE


def test_images_of_another_size_are_seen_at_once_and_of_another_content_in_full(tree: StudyTree) -> None:
    put_adapter(tree)
    put_adapter(tree, artist=BORIS)
    with (original(tree) / "01_tree.png").open("ab") as file:
        file.write(b"more")
    painting = original(tree, BORIS) / "01_tree.png"
    painting.write_bytes(painting.read_bytes()[::-1])

    quick, full = plan_of(tree), plan_of(tree, full=True)

    assert target_of(quick).state is State.STALE
    assert target_of(quick).reason.startswith("other images")
    assert target_of(quick, BORIS).state is State.COMPLETE
    assert target_of(full, BORIS).state is State.STALE


def test_a_broken_adapter_is_trained_again_and_says_why(tree: StudyTree) -> None:
    weights = put_adapter(tree) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-7])
    (put_adapter(tree, artist=BORIS) / TRAINING_RUN).write_text("{")
    unfinished = put_adapter(tree, artist=CLARA) / TRAINING_RUN
    run = json.loads(unfinished.read_text())
    del run["weights"]
    unfinished.write_text(json.dumps(run))

    for overwrite in (False, True):
        plan = plan_of(tree, overwrite=overwrite)
        for artist in (ANNA, BORIS, CLARA):
            assert judged(target_of(plan, artist)) == (State.WAITING, State.BROKEN)
            assert target_of(plan, artist).reason.startswith("its adapter is broken and will be set aside: ")
    assert target_of(plan, CLARA).reason.endswith("is about a training that did not end")


def test_a_flipped_value_is_found_by_the_full_check_only(tree: StudyTree) -> None:
    weights = put_adapter(tree) / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)

    assert target_of(plan_of(tree)).state is State.COMPLETE
    assert judged(target_of(plan_of(tree, full=True))) == (State.WAITING, State.BROKEN)


def test_an_adapter_of_another_tool_is_complete_if_it_has_the_rank(tree: StudyTree) -> None:
    save_lora(output_dir(tree, artist=ANNA) / WEIGHTS, rank=4)
    save_lora(output_dir(tree, artist=BORIS) / WEIGHTS, rank=5)

    plan = plan_of(tree, full=True)

    assert judged(target_of(plan)) == (State.COMPLETE, State.COMPLETE)
    assert target_of(plan).reason == "made by another tool"
    assert judged(target_of(plan, BORIS)) == (State.WAITING, State.BROKEN)


def test_overwrite_trains_again_what_is_complete_or_stale(tree: StudyTree) -> None:
    put_adapter(tree)
    put_adapter(tree, artist=BORIS, recipe={"options": {}})

    plan = plan_of(tree, overwrite=True)

    assert judged(target_of(plan)) == (State.WAITING, State.COMPLETE)
    assert judged(target_of(plan, BORIS)) == (State.WAITING, State.STALE)
    assert judged(target_of(plan, CLARA)) == (State.WAITING, State.WAITING)
    assert [bool(target.reason) for target in plan.targets] == [False, True, True, False]


def test_a_blocked_artist_is_not_overwritten(tree: StudyTree) -> None:
    put_adapter(tree)
    (original(tree) / "01_tree.jpg").write_bytes(b"a second file of one stem")

    target = target_of(plan_of(tree, overwrite=True))

    assert judged(target) == (State.BLOCKED, State.STALE)


def test_an_interrupted_overwrite_is_taken_up_and_says_so(tree: StudyTree) -> None:
    mark = {"status": "waiting", "note": OVERWRITTEN}
    bookmarks: dict[str, dict[str, Any]] = {
        f"hf_diffusers/none/none/{ANNA}": mark,
        f"hf_diffusers/none/none/{BORIS}": {"status": "waiting"},
        f"hf_diffusers/mist/none/{CLARA}": mark,
    }

    plan = plan_of(tree, bookmarks=bookmarks)

    assert [target.reason for target in plan.targets] == [
        "",
        "its old adapter was set aside by --overwrite",
        "",
        "",
    ]
    assert len(plan.of(State.WAITING)) == 4


# The same files under two names


def test_images_that_another_condition_was_trained_on_block_naming_both(shared_samples: StudyTree) -> None:
    twin = put_adapter(shared_samples, GLAZE_COUNTERED)

    plan = plan_of(shared_samples, COUNTERED)

    target = target_of(plan)
    assert target.state is State.BLOCKED
    assert str(target.images.path) in target.reason
    assert str(twin) in target.reason
    assert [other.artist for other in plan.of(State.WAITING)] == [DORA, BORIS, CLARA]


def test_other_bytes_of_the_same_sizes_are_no_twins(shared_samples: StudyTree) -> None:
    put_adapter(shared_samples, GLAZE_COUNTERED)
    painting = shared_samples.robust_samples / "noisy_upscaling" / str(ANNA) / "01_tree.png"
    painting.write_bytes(painting.read_bytes()[::-1])

    assert target_of(plan_of(shared_samples, COUNTERED)).state is State.WAITING


def test_the_adapter_of_the_condition_itself_is_no_twin(shared_samples: StudyTree) -> None:
    put_adapter(shared_samples, COUNTERED)

    target = target_of(plan_of(shared_samples, COUNTERED, overwrite=True))

    assert judged(target) == (State.WAITING, State.COMPLETE)


def test_samples_that_name_their_protection_have_no_twins(tree: StudyTree) -> None:
    shutil.copytree(
        tree.robust_samples / "noisy_upscaling" / "mist", tree.robust_samples / "noisy_upscaling" / "glaze"
    )
    put_adapter(tree, GLAZE_COUNTERED)

    assert len(plan_of(tree, COUNTERED).of(State.WAITING)) == 4


def test_a_training_that_left_no_adapter_makes_no_twin(shared_samples: StudyTree) -> None:
    (put_adapter(shared_samples, GLAZE_COUNTERED) / WEIGHTS).unlink()

    assert target_of(plan_of(shared_samples, COUNTERED)).state is State.WAITING


def test_twins_are_found_whatever_the_countermeasure_is_called(shared_samples: StudyTree) -> None:
    name = "noise[0.1] * ?"
    (shared_samples.robust_samples / "noisy_upscaling").rename(shared_samples.robust_samples / name)
    put_adapter(shared_samples, Condition("glaze", name))

    assert target_of(plan_of(shared_samples, Condition("mist", name))).state is State.BLOCKED
