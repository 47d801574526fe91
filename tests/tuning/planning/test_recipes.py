"""What a study's records tell together: how evaluation losses were measured."""

from typing import Any

import pytest

from mimicry.study.tree import StudyTree
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.recipes import StudyRecipes, evaluation_remarks
from tests.small_study import ANNA, BORIS, CLARA, MIST, ORIGINAL, plan_of, put_adapter

FOUR, EIGHT = [900.0, 700.0, 500.0, 300.0], [950.0, 900.5, 800.0, 700.0, 600.0, 500.0, 400.0, 200.0]


def eval_loss(timesteps: list[float], on: str = "in-sample") -> dict[str, Any]:
    return {"start": 1.0, "end": 0.5, "images": 3, "timesteps": timesteps, "on": on}


def remarks(tree: StudyTree, asked: int = 0) -> list[str]:
    return evaluation_remarks(StudyRecipes.read(tree, tree.adapters("hf_diffusers")), asked)


class TestEvaluations:
    @pytest.fixture
    def study(self, tree: StudyTree) -> StudyTree:
        put_adapter(tree, ORIGINAL, ANNA, eval_loss=eval_loss(FOUR))
        put_adapter(tree, ORIGINAL, BORIS, eval_loss=eval_loss(FOUR))
        return tree

    def test_nothing_is_said_where_all_are_measured_alike(self, study: StudyTree) -> None:
        put_adapter(study, MIST, ANNA, eval_loss=eval_loss(list(FOUR)))
        # Without a loss there is nothing to compare.
        put_adapter(study, MIST, BORIS, eval_loss={"skipped": "--eval_timesteps is 0"})
        put_adapter(study, MIST, CLARA)
        assert remarks(study) == remarks(study, asked=4) == []

    def test_other_timesteps_are_named_with_both_sides(self, study: StudyTree) -> None:
        put_adapter(study, MIST, ANNA, eval_loss=eval_loss(EIGHT))
        (remark,) = remarks(study)
        assert "must not be compared" in remark
        assert "4 timesteps, 900 to 300, in-sample (none__none 2)" in remark
        assert "8 timesteps, 950 to 200, in-sample (mist__none 1)" in remark

    def test_so_are_other_paintings_and_other_places_of_the_timesteps(self, study: StudyTree) -> None:
        put_adapter(study, MIST, ANNA, eval_loss=eval_loss(FOUR, on="unknown"))
        (remark,) = remarks(study)
        assert "in-sample (none__none 2)" in remark
        assert "unknown (mist__none 1)" in remark
        put_adapter(study, MIST, ANNA, eval_loss=eval_loss([900.0, 700.0, 500.0, 250.0]))
        (remark,) = remarks(study)
        assert "900 to 250, in-sample (mist__none 1)" in remark

    @pytest.mark.parametrize(
        "facts",
        [None, "none", {}, {"timesteps": [], "on": "unknown"}, {"timesteps": [1, "x"], "on": "unknown"}],
    )
    def test_a_record_that_does_not_tell_is_left_out(self, study: StudyTree, facts: object) -> None:
        put_adapter(study, MIST, ANNA, eval_loss=facts)
        assert remarks(study) == []

    def test_a_plan_says_that_it_will_measure_differently(self, study: StudyTree) -> None:
        assert plan_of(study, MIST).remarks == ()
        (remark,) = plan_of(study, MIST, config=TuningConfig(rank=4, eval_timesteps=8)).remarks
        assert remark.startswith("--eval-timesteps 8 ")
        assert "4 timesteps, 900 to 300, in-sample (none__none 2)" in remark
        # Without an evaluation it has no loss to compare.
        assert plan_of(study, MIST, config=TuningConfig(rank=4, eval_timesteps=0)).remarks == ()

    def test_a_plan_says_that_those_there_differ(self, study: StudyTree) -> None:
        put_adapter(study, MIST, ANNA, eval_loss=eval_loss(FOUR, on="unknown"))
        (remark,) = plan_of(study, MIST).remarks
        assert "measured differently" in remark

    def test_what_is_trained_again_does_not_count(self, study: StudyTree) -> None:
        plan = plan_of(study, ORIGINAL, overwrite=True, config=TuningConfig(rank=4, eval_timesteps=8))
        assert plan.remarks == ()
