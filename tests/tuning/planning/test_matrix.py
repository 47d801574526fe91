"""Plans of several conditions and series: order, names, cells without images, twins, recipes."""

import shutil
from dataclasses import replace
from typing import Any

import pytest

from mimicry.study.matrix import Selection
from mimicry.study.tree import AdapterId, Condition, State, StudyTree
from mimicry.tuning.options.click_options import TypedCommand
from mimicry.tuning.planning.one_recipe import recipe_problems
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.planner import make_plan
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    ANNA,
    BORIS,
    CONFIG,
    COUNTERED,
    DORA,
    EVERYBODY,
    MIST,
    ORIGINAL,
    asked_for,
    put_adapter,
    request_of,
    write_adapter,
)

GLAZE = Condition("glaze")
THREE = (ORIGINAL, MIST, COUNTERED)


def plan_matrix(
    tree: StudyTree,
    conditions: tuple[Condition, ...] = THREE,
    seeds: tuple[int, ...] = (42,),
    by_condition: bool = False,
    artists: tuple[str, ...] = (),
    **request: Any,
) -> Plan:
    """Plan conditions in a series for each seed; the first one is the usual study."""
    requests = []
    for seed in seeds:
        config = replace(CONFIG, seed=seed)
        variant = None if seed == seeds[0] else f"seed-{seed}"
        requests += [
            request_of(
                tree,
                condition,
                spec=asked_for(config),
                config=config,
                variant=variant,
                selection=Selection(artists=artists),
                **request,
            )
            for condition in conditions
        ]
    return make_plan(requests, {}, by_condition=by_condition)


def cell(plan: Plan, condition: Condition, variant: str | None = None) -> Target:
    """Return Anna's target in a condition."""
    (found,) = (
        target
        for target in plan.targets
        if (target.artist, target.request.condition, target.request.variant) == (ANNA, condition, variant)
    )
    return found


def places(plan: Plan) -> list[tuple[str | None, Condition, str]]:
    return [(target.request.variant, target.request.condition, target.artist.name) for target in plan.targets]


class TestOrder:
    def test_all_conditions_of_an_artist_come_before_the_next_one(self, tree: StudyTree) -> None:
        plan = plan_matrix(tree)
        assert places(plan) == [(None, condition, artist.name) for artist in EVERYBODY for condition in THREE]

    def test_or_all_artists_of_a_condition(self, tree: StudyTree) -> None:
        plan = plan_matrix(tree, by_condition=True)
        assert places(plan) == [(None, condition, artist.name) for condition in THREE for artist in EVERYBODY]

    def test_a_series_is_whole_before_the_next_one(self, tree: StudyTree) -> None:
        plan = plan_matrix(tree, (ORIGINAL, MIST), seeds=(42, 43), artists=("Anna_Berg",))
        assert places(plan) == [
            (variant, condition, "Anna_Berg")
            for variant in (None, "seed-43")
            for condition in (ORIGINAL, MIST)
        ]


class TestNames:
    def test_a_target_is_called_by_what_tells_it_from_others(self, tree: StudyTree) -> None:
        plans = [
            plan_matrix(tree, (MIST,)),
            plan_matrix(tree, (ORIGINAL, MIST)),
            plan_matrix(tree, (MIST,), seeds=(42, 43)),
            plan_matrix(tree, seeds=(42, 43)),
        ]
        assert [plan.name_of(cell(plan, MIST)) for plan in plans] == [
            str(ANNA),
            f"mist__none {ANNA}",
            f"hf_diffusers {ANNA}",
            f"hf_diffusers mist__none {ANNA}",
        ]
        assert plans[1].short_name_of(cell(plans[1], MIST)) == "mist__none Anna_Berg"

    def test_each_cell_has_its_own_key_folder_and_repository(self, tree: StudyTree) -> None:
        plan = plan_matrix(tree, seeds=(42, 43))
        assert len(plan.targets) == 24
        assert len({target.adapter.key for target in plan.targets}) == 24
        assert len({target.folder.path for target in plan.targets}) == 24
        assert len({target.upload_job.repository for target in plan.targets}) == 24
        assert "--seed=43" in cell(plan, MIST, "seed-43").command


class TestNoImages:
    def test_an_artist_without_a_folder_is_blocked_in_a_typed_condition(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.images_of(tree.protected_art / "mist", ANNA))
        target = cell(plan_matrix(tree), MIST)
        assert target.state is State.BLOCKED

    def test_and_has_no_data_in_another_one(self, tree: StudyTree) -> None:
        shutil.rmtree(tree.images_of(tree.protected_art / "mist", ANNA))
        plan = plan_matrix(tree, needs_images=False)
        assert cell(plan, MIST).state is State.NO_DATA
        assert plan.counts()["no data"] == 1

    def test_a_folder_without_images_is_blocked_all_the_same(self, tree: StudyTree) -> None:
        folder = tree.images_of(tree.protected_art / "mist", ANNA)
        shutil.rmtree(folder)
        folder.mkdir()
        assert cell(plan_matrix(tree, needs_images=False), MIST).state is State.BLOCKED

    def test_conditions_that_were_left_out_are_said(self, tree: StudyTree) -> None:
        plan = make_plan([request_of(tree)], {}, absent=[(GLAZE, "there is no art protected by glaze")])
        (remark,) = plan.remarks
        assert "glaze__none" in remark


class TestTwins:
    @pytest.fixture
    def copied(self, tree: StudyTree) -> StudyTree:
        """Mist's images of Anna stand in the folder of glaze, too."""
        shutil.copytree(
            tree.images_of(tree.protected_art / "mist", ANNA),
            tree.images_of(tree.protected_art / "glaze", ANNA),
        )
        return tree

    def test_the_second_of_two_is_blocked(self, copied: StudyTree) -> None:
        plan = plan_matrix(copied, (ORIGINAL, MIST, GLAZE), artists=("Anna_Berg",))
        assert [target.state for target in plan.targets] == [State.WAITING, State.WAITING, State.BLOCKED]
        assert str(cell(plan, MIST).images.path) in cell(plan, GLAZE).reason

    def test_a_trained_one_counts(self, copied: StudyTree) -> None:
        put_adapter(copied, GLAZE)
        plan = plan_matrix(copied, (GLAZE, MIST), artists=("Anna_Berg",))
        assert [target.state for target in plan.targets] == [State.COMPLETE, State.BLOCKED]

    def test_replicates_are_meant_to_have_the_same_images(self, tree: StudyTree) -> None:
        plan = plan_matrix(tree, seeds=(42, 43, 44))
        assert {target.state for target in plan.targets} == {State.WAITING}

    def test_equal_sizes_alone_are_not_enough(self, copied: StudyTree) -> None:
        folder = copied.images_of(copied.protected_art / "glaze", ANNA)
        image = sorted(folder.iterdir())[0]
        image.write_bytes(image.read_bytes()[:-1] + b"?")
        plan = plan_matrix(copied, (MIST, GLAZE), artists=("Anna_Berg",))
        assert {target.state for target in plan.targets} == {State.WAITING}


class TestRecipes:
    def test_each_series_has_its_own(self, tree: StudyTree) -> None:
        seed_43 = replace(CONFIG, seed=43)
        adapter = AdapterId("hf_diffusers", ORIGINAL, ANNA, "seed-43")
        put_adapter(tree)
        write_adapter(tree.adapter_dir(adapter), tree.images_of(tree.original_art, ANNA), seed_43)
        plan = plan_matrix(tree, seeds=(42, 43))
        assert recipe_problems(plan, TypedCommand(("apply_tuning",), {})) == []
        assert [recipes.groups[0].recipe["options"]["seed"] for recipes in plan.recipes.values()] == [42, 43]

    def test_one_that_differs_is_refused_by_name(self, tree: StudyTree) -> None:
        adapter = AdapterId("hf_diffusers", MIST, BORIS, "seed-43")
        write_adapter(
            tree.adapter_dir(adapter),
            tree.images_of(tree.protected_art / "mist", BORIS),
            replace(CONFIG, seed=7),
        )
        plan = plan_matrix(tree, seeds=(42, 43))
        (problem,) = recipe_problems(plan, TypedCommand(("apply_tuning",), {}))
        assert "hf_diffusers@seed-43" in problem

    def test_an_overwrite_is_one_for_all(self, tree: StudyTree) -> None:
        put_adapter(tree, ORIGINAL, DORA)
        put_adapter(tree, MIST, ANNA)
        plan = plan_matrix(tree, overwrite=True)
        marks = [(plan.overwrite_mark(target) or {})["name"] for target in plan.targets]
        assert len(marks) == 12
        assert len(set(marks)) == 1
