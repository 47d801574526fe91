"""A batch hears of sister adapters with other numerics: shown and kept, or blocked."""

import pytest

from mimicry.common.files import write_json
from mimicry.study.tree import StudyTree
from mimicry.tuning.planning.target import Target
from mimicry.tuning.reports.tables import summary
from tests.small_study import ANNA, BORIS, EVERYBODY, plan_of, write_adapter
from tests.tuning.staged_batch import OnStep, make_batch, mark_of, outcomes

FOUND = {"mist__none": ["torch '2.12' -> '2.13'"]}
PHRASE = "other numerics than mist__none (torch '2.12' -> '2.13')"


def succeed_otherwise(target: Target, on_step: OnStep) -> int:
    write_adapter(target.folder.path, target.images.path, other_numerics=FOUND)
    return 0


def refuse(target: Target, on_step: OnStep) -> int:
    write_json(target.folder.record, {"status": "blocked", "error": PHRASE})
    return 1


def test_a_difference_is_kept_and_shown(tree: StudyTree, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tree)
    batch, _ = make_batch(plan, {ANNA: succeed_otherwise})

    batch.run()

    assert mark_of(tree)["other_numerics"] == FOUND
    assert "other_numerics" not in mark_of(tree, BORIS)
    assert summary(plan, batch.results).count(PHRASE) == 1
    assert f", {PHRASE}\n" in capsys.readouterr().out


def test_a_refusal_is_no_failure(tree: StudyTree) -> None:
    """Nor do three of them in a row stop the batch: the next artist may have no sisters."""
    plan = plan_of(tree)
    batch, executor = make_batch(plan, dict.fromkeys(EVERYBODY[:3], refuse))

    batch.run()

    assert executor.trained == list(EVERYBODY)
    assert outcomes(batch) == ["blocked", "blocked", "blocked", "trained"]
    mark = mark_of(tree, EVERYBODY[0])
    assert (mark["status"], mark["error"]) == ("blocked", PHRASE)
    assert summary(plan, batch.results).endswith("1 trained, 3 blocked")
