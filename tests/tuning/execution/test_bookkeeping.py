"""What the books of a batch keep: numerics, evaluations, warnings, claims of other calls, repairs."""

import json
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.claims import CLAIM, Claim
from mimicry.common.errors import MimicryError
from mimicry.common.files import write_json
from mimicry.study.tracker import ProgressTracker
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, CHECKPOINT_FACTS, WEIGHTS, AdapterFolder
from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.bookkeeping import repair
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.planning.target import Target
from mimicry.tuning.status.tables import summary
from tests.small_study import (
    ANNA,
    BORIS,
    EVERYBODY,
    plan_of,
    put_adapter,
    target_of,
    write_adapter,
)
from tests.tuning.staged_batch import (
    Ending,
    OnStep,
    fail,
    make_batch,
    mark_of,
    outcomes,
    output,
    statuses,
    succeed,
)

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


def others(folder: Path) -> Claim:
    """Claim `folder` as another call does."""
    return Claim.take_anew(folder)


class TestPlan:
    def test_an_artist_that_another_call_trains_is_shown_as_such(self, tree: StudyTree) -> None:
        with others(output(tree)):
            plan = plan_of(tree)
        target = target_of(plan)
        assert target.state is State.RUNNING
        assert target.reason.startswith("in use by pid ")
        assert plan.counts() == {
            "train": 3,
            "complete": 0,
            "stale": 0,
            "claimed": 1,
            "queued": 0,
            "blocked": 0,
            "no data": 0,
        }

    def test_a_complete_one_is_complete_whoever_looks_at_it(self, tree: StudyTree) -> None:
        put_adapter(tree)
        with others(output(tree)):
            assert target_of(plan_of(tree)).state is State.COMPLETE


class TestBatch:
    def test_without_waiting_nothing_is_recorded_of_it(self, tree: StudyTree) -> None:
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="waiting")
        with others(output(tree)):
            make_batch(plan_of(tree), wait=False)[0].run()
        assert mark_of(tree)["status"] == "waiting"

    def test_a_lost_claim_is_no_failure_of_ours(self, tree: StudyTree) -> None:
        def lose(target: Target, on_step: OnStep) -> int:
            (target.folder.path / CLAIM).unlink()
            write_adapter(target.folder.path, target.images.path)
            return 1

        batch, _ = make_batch(plan_of(tree), {ANNA: lose})
        batch.run()
        assert outcomes(batch) == ["trained"] * 3 + ["skipped"]
        assert statuses(tree) == ["complete"] * 4

    def test_a_stopped_trainer_is_an_interruption_and_the_others_go_on(self, tree: StudyTree) -> None:
        def be_stopped(target: Target, on_step: OnStep) -> int:
            on_step({"step": 3, "loss": 0.5})
            run = {"status": "interrupted", "error": "stopped by SIGTERM", "steps": 5}
            write_json(target.folder.record, run)
            return 1

        batch, executor = make_batch(plan_of(tree), {ANNA: be_stopped})
        batch.run()
        assert len(executor.trained) == 4
        assert outcomes(batch) == ["trained", "interrupted", "trained", "trained"]
        mark = mark_of(tree)
        assert (mark["status"], mark["steps"], mark["error"]) == ("interrupted", 5, "stopped by SIGTERM")

    def test_a_result_that_cannot_be_recorded_is_in_the_summary(
        self, tree: StudyTree, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch, _ = make_batch(plan_of(tree), {ANNA: succeed})

        def full(*_: Any, **__: Any) -> None:
            raise MimicryError("no room")

        monkeypatch.setattr(ProgressTracker, "record", full)
        with pytest.raises(MimicryError, match="no room"):
            batch.run()
        assert outcomes(batch) == ["trained"]


class TestRepair:
    def test_what_killed_processes_have_left_is_removed(self, tree: StudyTree) -> None:
        folder = put_adapter(tree)
        expected = sorted(path.name for path in folder.iterdir())
        for name in (".saving-x", ".checkpoint-3", "checkpoint-2"):
            (folder / name).mkdir()
        (folder / "checkpoint-2" / CHECKPOINT_FACTS).write_text("{}")
        (folder / ".tmp-x").write_text("")
        (folder / CLAIM).write_text("{}")
        assert repair(AdapterFolder(folder, ADAPTER_FORMAT)) == ""
        assert sorted(path.name for path in folder.iterdir()) == expected

    def test_what_is_not_ours_stays(self, tree: StudyTree) -> None:
        folder = put_adapter(tree)
        (folder / "checkpoint-500").mkdir()
        (folder / "notes.txt").write_text("mine")
        repair(AdapterFolder(folder, ADAPTER_FORMAT))
        assert (folder / "checkpoint-500").is_dir()
        assert (folder / "notes.txt").exists()

    def test_where_somebody_works_nothing_is_touched(self, tree: StudyTree) -> None:
        folder = put_adapter(tree)
        (folder / ".tmp-x").write_text("")
        with others(folder):
            repair(AdapterFolder(folder, ADAPTER_FORMAT))
            assert (folder / ".tmp-x").exists()

    def test_what_another_call_has_set_aside_meanwhile_is_nobodys_fault(self, tree: StudyTree) -> None:
        folder = put_adapter(tree, paths={"pretrained_model_name_or_path": "lab/tiny"})
        (folder / WEIGHTS).unlink()
        assert repair(AdapterFolder(folder, ADAPTER_FORMAT)) == ""

    @pytest.mark.parametrize("damage", [None, b"", b"[", b'{"r": 5}'])
    def test_a_damaged_adapter_config_is_written_again(self, damage: bytes | None, tree: StudyTree) -> None:
        folder = put_adapter(tree, paths={"pretrained_model_name_or_path": "lab/tiny"})
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        assert repair(AdapterFolder(folder, ADAPTER_FORMAT)) == ""
        if damage is None:
            (folder / ADAPTER_CONFIG).unlink()
        else:
            (folder / ADAPTER_CONFIG).write_bytes(damage)
        batch: Batch = make_batch(plan_of(tree))[0]
        batch.books.prepare()
        assert json.loads((folder / ADAPTER_CONFIG).read_text()) == config
