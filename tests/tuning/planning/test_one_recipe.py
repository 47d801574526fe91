"""One recipe per study: what is refused, what is said, and the ways on."""

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault
from mimicry.study.drawn_images import ClassImages
from mimicry.study.tree import AdapterId, State, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.options.click_options import TypedCommand
from mimicry.tuning.planning.one_recipe import recipe_problems
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    ANNA,
    BASE,
    BORIS,
    CONFIG,
    EVERYBODY,
    MIST,
    ORIGINAL,
    asked_for,
    output_dir,
    plan_of,
    put_adapter,
    target_of,
    write_adapter,
    write_images,
)
from tests.tuning.lora_files import save_lora
from tests.tuning.quick_studio import QuickStudio
from tests.tuning.staged_batch import OnStep, make_batch, outcomes, succeed

TYPED = TypedCommand(("apply_tuning",), {"protection": ("--protection", "mist"), "rank": ("--rank", "8")})


def problem_of(plan: Plan) -> str:
    """Return the one problem with the recipes of the study."""
    (problem,) = recipe_problems(plan, TYPED)
    return problem


def lines_of(plan: Plan) -> list[str]:
    return [line.strip() for line in problem_of(plan).split("\n")]


def is_refused(plan: Plan) -> bool:
    return recipe_problems(plan, TYPED) != []


@pytest.fixture
def study(tree: StudyTree) -> StudyTree:
    """A study whose original art was trained."""
    for artist in EVERYBODY:
        put_adapter(tree, ORIGINAL, artist)
    return tree


class TestRefusal:
    def test_the_same_recipe_is_none(self, study: StudyTree) -> None:
        assert not is_refused(plan_of(study, MIST))

    def test_each_difference_has_the_value_of_the_study_and_of_the_call(self, study: StudyTree) -> None:
        plan = plan_of(study, MIST, asked=asked_for(rank=8, max_train_steps=30, lora_layers="attn.to_q"))

        assert lines_of(plan)[1:5] == [
            "4 (none__none 4):",
            "rank             4 in the study, 8 in this call",
            "max_train_steps  500 in the study, 30 in this call",
            "lora_layers      none in the study, 'attn.to_q' in this call",
        ]

    def test_the_command_that_continues_the_study(self, study: StudyTree) -> None:
        plan = plan_of(study, MIST, asked=asked_for(rank=8, max_train_steps=30, gradient_checkpointing=False))

        line = next(line for line in lines_of(plan) if line.startswith("to continue the study: "))
        words = shlex.split(line.partition(": ")[2])
        assert words == "apply_tuning --protection mist --rank 4 --max-train-steps 500".split()

    def test_paintings_held_out_and_evened_sizes_are_part_of_it(self, study: StudyTree) -> None:
        held = replace(CONFIG, hold_out=1, source_resolution=512)
        plan = plan_of(study, MIST, config=held)
        said = lines_of(plan)
        assert "source_resolution  none in the study, 512 in this call" in said
        assert "hold_out           0 in the study, 1 in this call" in said

        write_adapter(output_dir(study, ORIGINAL, ANNA), study.images_of(study.original_art, ANNA), held)
        write_adapter(
            output_dir(study, MIST, ANNA), study.images_of(study.protected_art / "mist", ANNA), held
        )
        plan = plan_of(study, MIST, artists=(BORIS.name,))
        assert "hold_out           1 in the study, 0 in this call" in lines_of(plan)

    def test_every_way_on_is_named(self, study: StudyTree) -> None:
        said = problem_of(plan_of(study, MIST, asked=asked_for(rank=8)))
        for way in ("--variant NAME", "--retrain-stale", "--allow-mixed-recipes"):
            assert way in said

    @pytest.mark.parametrize("way", ["retrain_stale", "allow_mixed_recipes"])
    def test_a_way_that_was_typed_is_open(self, way: str, study: StudyTree) -> None:
        typed: dict[str, Any] = {way: True}
        assert not is_refused(plan_of(study, MIST, asked=asked_for(rank=8), **typed))

    def test_a_study_beside_it_is_open(self, study: StudyTree) -> None:
        plan = plan_of(study, MIST, asked=asked_for(rank=8), variant="rank-8")

        assert not is_refused(plan)
        assert target_of(plan).folder.path == study.lora / "hf_diffusers@rank-8/mist__none" / str(ANNA)
        assert target_of(plan).adapter.key == f"hf_diffusers@rank-8/mist/none/{ANNA}"
        assert target_of(plan).upload_job.repository == "sd35-lora-mist-none-Anna_Berg-rank-8"

    def test_each_variant_has_a_recipe_of_its_own(self, study: StudyTree) -> None:
        folder = study.adapter_dir(AdapterId("hf_diffusers", ORIGINAL, ANNA, "big"))
        write_adapter(folder, study.images_of(study.original_art, ANNA), replace(CONFIG, rank=8))

        assert not is_refused(plan_of(study, MIST, asked=asked_for(rank=8), variant="big"))
        assert is_refused(plan_of(study, MIST, variant="big"))

    def test_nothing_to_train_is_nothing_to_refuse(self, study: StudyTree) -> None:
        plan = plan_of(study, ORIGINAL, asked=asked_for(rank=8))

        assert {target.state for target in plan.targets} == {State.STALE}
        assert not is_refused(plan)

    def test_one_that_another_call_may_leave_to_us_counts_as_one_to_train(self, study: StudyTree) -> None:
        with Claim.take_anew(output_dir(study, MIST)):
            plan = plan_of(study, MIST, asked=asked_for(rank=8), artists=("Anna_Berg",))

        assert target_of(plan).state is State.RUNNING
        assert is_refused(plan)


class TestWhatCounts:
    @pytest.mark.parametrize(
        "same",
        [
            {"gradient_checkpointing": False},
            {"allow_tf32": True},
            {"eval_timesteps": 0},
            {"require_same_numerics": True},
        ],
        ids=lambda changed: next(iter(changed)),
    )
    def test_not_what_leaves_the_adapter_as_it_is(self, same: dict[str, Any], study: StudyTree) -> None:
        assert not is_refused(plan_of(study, MIST, asked=asked_for(**same)))

    @pytest.mark.parametrize(
        "other",
        [{"seed": 43}, {"captions": True}, {"num_processes": 2}, {"mixed_precision": "no"}],
        ids=lambda changed: next(iter(changed)),
    )
    def test_what_changes_it(self, other: dict[str, Any], study: StudyTree) -> None:
        assert is_refused(plan_of(study, MIST, asked=asked_for(**other)))

    def test_another_base_model_with_the_way_back(self, study: StudyTree) -> None:
        plan = plan_of(study, MIST, asked=asked_for(base=replace(BASE, revision="1" * 40)))

        assert "base model  lab/tiny 000000000000 in the study, lab/tiny 111111111111 in this call" in (
            lines_of(plan)
        )
        command = next(line for line in lines_of(plan) if line.startswith("to continue"))
        assert f"--pretrained-model-name-or-path lab/tiny --revision {'0' * 40}" in command

    def test_other_class_images(self, tree: StudyTree) -> None:
        theirs, ours = (ClassImages(tree.data_root / name, 3) for name in ("theirs", "ours"))
        write_images(theirs.folder)
        write_images(ours.folder, ("x", "y", "z"))
        put_adapter(tree, class_images=theirs.record())

        same = replace(asked_for(), class_images=theirs)
        assert not is_refused(plan_of(tree, MIST, asked=same))
        assert "class images" in problem_of(plan_of(tree, MIST, asked=replace(same, class_images=ours)))

    def test_an_option_that_did_not_exist_counts_as_its_default(self, tree: StudyTree) -> None:
        record = put_adapter(tree) / TRAINING_RUN
        run = json.loads(record.read_text())
        del run["recipe"]["options"]["logit_std"]
        record.write_text(json.dumps(run))
        put_adapter(tree, ORIGINAL, BORIS)

        plan = plan_of(tree, MIST)
        assert not is_refused(plan)
        assert not plan.study_recipes(plan.requests[0]).is_mixed
        assert is_refused(plan_of(tree, MIST, asked=asked_for(logit_std=2.0)))

    def test_records_that_tell_no_recipe_are_named_and_not_counted(self, study: StudyTree) -> None:
        (output_dir(study, ORIGINAL, ANNA) / TRAINING_RUN).write_text("{")
        (output_dir(study, ORIGINAL, BORIS) / TRAINING_RUN).unlink()

        plan = plan_of(study, MIST, asked=asked_for(rank=8))

        said = problem_of(plan)
        assert "2 (none__none 2):" in said
        assert f"none__none/{ANNA}" in said and f"none__none/{BORIS}" in said
        assert any(f"none__none/{ANNA}" in remark for remark in plan_of(study, MIST).remarks)

    def test_weights_of_another_training_than_the_record_do_not_count(self, tree: StudyTree) -> None:
        record = put_adapter(tree) / TRAINING_RUN
        run = json.loads(record.read_text())
        del run["weights"]
        record.write_text(json.dumps(run))

        assert not is_refused(plan_of(tree, MIST, asked=asked_for(rank=8)))

    def test_a_folder_without_weights_does_not_count(self, tree: StudyTree) -> None:
        (put_adapter(tree) / WEIGHTS).unlink()

        assert not is_refused(plan_of(tree, MIST, asked=asked_for(rank=8)))

    def test_one_in_training_counts(self, tree: StudyTree) -> None:
        folder = put_adapter(tree)
        (folder / WEIGHTS).unlink()
        with Claim.take_anew(folder):
            assert is_refused(plan_of(tree, MIST, asked=asked_for(rank=8)))

    def test_another_stack_has_a_study_of_its_own(self, tree: StudyTree) -> None:
        folder = output_dir(tree, stack="other")
        write_adapter(folder, tree.images_of(tree.original_art, ANNA), replace(CONFIG, rank=8))

        assert not is_refused(plan_of(tree, MIST))

    def test_a_stack_without_options_has_no_recipe(self, quick_studio: QuickStudio) -> None:
        write_adapter(
            output_dir(quick_studio.tree, stack="quick"), quick_studio.tree.original_art / str(ANNA)
        )
        folder = quick_studio.stack / "runner_config.json"
        folder.write_text(folder.read_text().replace(" {options}", ""))
        (quick_studio.stack / "stack.py").unlink()

        words = [f"--data-root={quick_studio.tree.data_root}", f"--stack={quick_studio.stack}"]
        assert quick_studio.tune_bare(*words, "--protection=mist", "--artist=Anna_Berg").code == 0


class TestReplaced:
    def test_what_the_call_replaces_does_not_count(self, study: StudyTree) -> None:
        plan = plan_of(study, ORIGINAL, asked=asked_for(rank=8), overwrite=True)

        assert len(plan.of(State.WAITING)) == 4
        assert not is_refused(plan)

    def test_what_it_leaves_as_it_is_does(self, study: StudyTree) -> None:
        put_adapter(study, MIST)

        everybody = plan_of(study, ORIGINAL, asked=asked_for(rank=8), overwrite=True)
        anna = plan_of(study, ORIGINAL, asked=asked_for(rank=8), overwrite=True, artists=("Anna_Berg",))

        assert "1 (mist__none 1):" in problem_of(everybody)
        assert "4 (mist__none 1, none__none 3):" in problem_of(anna)

    def test_what_is_still_to_be_replaced_elsewhere_is_said(self, study: StudyTree) -> None:
        put_adapter(study, MIST)

        plan = plan_of(study, ORIGINAL, asked=asked_for(rank=8), retrain_stale=True)

        (remark,) = plan.remarks
        assert remark.startswith("still of another recipe: mist__none 1 (rank 4 -> 8)")


class TestMixed:
    @pytest.fixture
    def mixed(self, study: StudyTree) -> StudyTree:
        put_adapter(study, MIST, config=replace(CONFIG, rank=8))
        return study

    def test_it_is_said_and_refused_whichever_recipe_is_asked_for(self, mixed: StudyTree) -> None:
        for asked in (asked_for(), asked_for(rank=8), asked_for(seed=1)):
            lines = lines_of(plan_of(mixed, MIST, asked=asked))
            assert "have 2 recipes" in lines[0]
            assert any("the recipe of most" in line for line in lines)

    def test_the_recipe_of_the_call_is_marked(self, mixed: StudyTree) -> None:
        assert lines_of(plan_of(mixed, MIST))[1:4] == [
            "4 (none__none 4): the recipe of this call",
            "1 (mist__none 1):",
            "rank  8 in the study, 4 in this call",
        ]

    def test_retraining_what_differs_makes_it_one(self, mixed: StudyTree) -> None:
        plan = plan_of(mixed, MIST, retrain_stale=True)

        assert not is_refused(plan)
        assert target_of(plan).reason == "--retrain-stale sets its adapter aside: rank 8 -> 4"
        assert plan.remarks == ()

    def test_it_is_kept_in_plan_summary_and_record(self, quick_studio: QuickStudio) -> None:
        assert quick_studio.tune("--artist=Anna_Berg").code == 0
        done = quick_studio.tune(
            "--artist=Anna_Berg", "--protection=mist", "--seed=7", "--allow-mixed-recipes"
        )

        assert done.code == 0
        note = "mixed recipes, by --allow-mixed-recipes; adapters of others: 1 (none__none 1): seed 42 -> 7"
        assert done.out.count(f"note: {note}") == 2
        folder = quick_studio.tree.lora / "quick/mist__none" / str(ANNA)
        assert note in json.loads((folder / TRAINING_RUN).read_text())["warnings"]


class TestProgram:
    def test_nothing_is_trained_and_nothing_written(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        done = quick_studio.tune("--protection=mist", "--max-train-steps=30")

        assert (done.code, done.out) == (2, "")
        assert "--max-train-steps 500" in done.err
        assert quick_studio.trained() == [ANNA.name]
        assert not (quick_studio.tree.lora / "quick/mist__none").exists()

    def test_the_command_that_it_names_works(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg", "--random-flip")
        refused = quick_studio.tune("--protection=mist", "--artist=Anna_Berg", "--max-train-steps=30")
        line = next(line for line in refused.err.splitlines() if "to continue the study: " in line)
        words = shlex.split(line.partition(": ")[2])

        assert words[-3:] == ["--max-train-steps", "500", "--random-flip"]
        first = next(number for number, word in enumerate(words) if word.startswith("--"))
        assert quick_studio.tune_bare(*words[first:]).code == 0

    def test_a_dry_run_says_that_the_training_would_be_refused(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        words = ("--protection=mist", "--seed=7", "--dry-run")
        done = quick_studio.tune(*words)

        assert done.code == 0
        assert "the training would be refused: " in done.err
        (refused,) = json.loads(quick_studio.tune(*words, "--json").out)["refused"]
        assert "seed  42 in the study, 7 in this call" in refused

    def test_a_variant_through_training_and_verification(self, quick_studio: QuickStudio) -> None:
        quick_studio.tune("--artist=Anna_Berg")
        words = ("--artist=Anna_Berg", "--seed=7", "--variant=seed-7")

        assert quick_studio.tune(*words).code == 0
        assert quick_studio.tune(*words).out.splitlines()[-1] == "1 skipped"
        verified = quick_studio.verify("--variant=seed-7")
        assert (verified.code, "1 complete" in verified.out) == (0, True)
        assert "did you mean 'seed-7'" in quick_studio.verify("--variant=seed_7").err

    @pytest.mark.parametrize("name", ["", "a/b", "a@b", "-x", ".x", "x" * 41])
    def test_a_name_that_a_variant_cannot_have(self, name: str, quick_studio: QuickStudio) -> None:
        done = quick_studio.tune(f"--variant={name}")

        assert done.code == 2
        assert f"--variant {name!r} is not a name" in done.err


def test_adapters_without_a_record_have_no_recipe(tree: StudyTree) -> None:
    save_lora(output_dir(tree) / WEIGHTS, rank=4)

    plan = plan_of(tree, MIST, asked=asked_for(rank=8))

    assert not is_refused(plan)
    assert plan.study_recipes(plan.requests[0]).unknown == (AdapterId("hf_diffusers", ORIGINAL, ANNA),)


def test_another_call_that_brings_another_recipe_meanwhile(tree: StudyTree) -> None:
    def ending(target: Target, on_step: OnStep) -> int:
        put_adapter(tree, MIST, config=replace(CONFIG, rank=8))
        return succeed(target, on_step)

    batch, executor = make_batch(plan_of(tree), {EVERYBODY[0]: ending})

    with pytest.raises(BatchFault, match="another one has brought another recipe into the study") as caught:
        batch.run()

    assert "rank  8 in the study, 4 in this call" in str(caught.value)
    assert executor.trained == [EVERYBODY[0]]
    assert outcomes(batch) == ["trained"]
