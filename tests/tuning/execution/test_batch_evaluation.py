"""The loss on the original art as a batch hears of it: kept in the bookmark, and shown."""

import pytest

from mimicry.study.tree import StudyTree
from mimicry.tuning.planning.target import Target
from tests.small_study import ANNA, BORIS, plan_of, write_adapter
from tests.tuning.staged_batch import OnStep, fail, make_batch, mark_of


def succeed_evaluated(target: Target, on_step: OnStep) -> int:
    on_step({"step": 0, "eval_loss": 1.25})
    for step in (1, 2):
        on_step({"step": step, "loss": 0.5})
    on_step({"step": 2, "eval_loss": 1.125})
    write_adapter(target.folder.path, target.images.path, eval_loss={"start": 1.25, "end": 1.125})
    return 0


def test_the_loss_on_the_original_art_is_kept_and_shown(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, _ = make_batch(plan_of(tree), {ANNA: succeed_evaluated})

    batch.run()

    assert [result.evaluation for result in batch.results] == ["", "eval 1.250 -> 1.125", "", ""]
    assert mark_of(tree)["eval_loss"] == {"start": 1.25, "end": 1.125}
    assert "eval_loss" not in mark_of(tree, BORIS)
    assert ", mean loss 0.2500, eval 1.250 -> 1.125\n" in capsys.readouterr().out


def test_a_training_that_fails_between_evaluations_forgets_the_loss_of_the_one_before(
    tree: StudyTree,
) -> None:
    make_batch(plan_of(tree), {ANNA: succeed_evaluated})[0].run()

    def fail_evaluated(target: Target, on_step: OnStep) -> int | None:
        on_step({"step": 0, "eval_loss": 1.25})
        return fail("it burned")(target, on_step)

    make_batch(plan_of(tree, overwrite=True), {ANNA: fail_evaluated})[0].run()

    assert mark_of(tree)["status"] == "failed"
    assert "eval_loss" not in mark_of(tree)
