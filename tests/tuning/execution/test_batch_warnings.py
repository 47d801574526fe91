"""What a training itself has found odd reaches the screen, the summary and no bookmark twice."""

from typing import Any

import pytest

from mimicry.common.files import write_json
from mimicry.study.tree import StudyTree
from mimicry.tuning.planning.target import Target
from mimicry.tuning.reports.tables import summary
from tests.small_study import ANNA, plan_of, write_adapter
from tests.tuning.staged_batch import Ending, OnStep, make_batch, mark_of

ODD = "checkpoint-100 could not be written: no room"


def warning(*texts: str, **fields: Any) -> Ending:
    """Complete, with these warnings in the record beside those of the plan."""

    def ending(target: Target, on_step: OnStep) -> int:
        write_adapter(target.folder.path, target.images.path, warnings=[*target.warnings, *texts], **fields)
        return 0

    return ending


def fail_oddly(target: Target, on_step: OnStep) -> int:
    write_json(target.folder.record, {"status": "failed", "error": "it burned", "warnings": [ODD]})
    return 1


@pytest.mark.parametrize("ending", [warning(ODD), fail_oddly], ids=["complete", "failed"])
def test_a_warning_of_the_trainer_is_said_and_summed_up(
    ending: Ending, tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tree, artists=("Anna_Berg",))
    batch, _ = make_batch(plan, {ANNA: ending})

    batch.run()

    assert f"[1/1] {ANNA}: warning: {ODD}\n" in capsys.readouterr().out
    assert summary(plan, batch.results).count(ODD) == 1


def test_a_warning_of_the_plan_is_not_said_again(tree: StudyTree, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tree, artists=("Anna_Berg",))
    batch, _ = make_batch(plan, {ANNA: warning()})

    batch.run()

    assert "warning: " not in capsys.readouterr().out
    assert summary(plan, batch.results).count("3 images; the defaults are meant for 20") == 1


def test_a_resumed_training_has_the_time_of_all_its_attempts(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tree, artists=("Anna_Berg",))
    batch, _ = make_batch(plan, {ANNA: warning(resumed_from=27, earlier_seconds=3600.0, seconds=3605.998)})

    batch.run()

    assert 3600 <= mark_of(tree)["seconds"] < 3660
    # In tenths of a second, as for others.
    assert mark_of(tree)["seconds"] == round(mark_of(tree)["seconds"], 1)
    assert mark_of(tree)["started_at"] == "2026-01-02T03:04:05+00:00"
    assert "complete in 0:00, resumed at step 27" in capsys.readouterr().out
    assert "0:00 of 1:00:00" in summary(plan, batch.results)
