"""Batches: order, bookmarks, what a failure stops. The trainings are staged by a fake executor."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from mimicry.common.children import Interrupted, stop_signals_raise
from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault, ClaimedElsewhere
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.planning.plan import OVERWRITTEN
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    DORA,
    EVERYBODY,
    STEMS,
    plan_of,
    put_adapter,
)
from tests.tuning.staged_batch import (
    Ending,
    OnStep,
    StagedChild,
    be_stopped,
    fail,
    leave_broken,
    make_batch,
    mark_of,
    outcomes,
    output,
    owe_upload,
    stall,
    statuses,
    succeed,
)


def test_all_are_trained_in_the_order_of_the_plan_and_marked_complete(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, executor = make_batch(plan_of(tree))

    batch.run()

    assert executor.trained == list(EVERYBODY)
    assert outcomes(batch) == ["trained"] * 4
    assert [(result.loss, result.error, result.owed) for result in batch.results] == [(0.25, "", "")] * 4
    assert statuses(tree) == ["complete"] * 4
    mark = mark_of(tree)
    assert (mark["images"], mark["steps"], mark["loss"]) == (3, 500, 0.25)
    assert mark.keys().isdisjoint({"error", "note"})
    said = capsys.readouterr().out
    assert f"[2/4] {ANNA}: training on 3 images; " in said
    assert f"[2/4] {ANNA}: complete in 0:00, mean loss 0.2500\n" in said


def test_what_is_to_come_is_written_down_before_the_first_training(tree: StudyTree) -> None:
    (tree.images_of(tree.original_art, CLARA) / f"{STEMS[0]}.jpg").write_bytes(b"a second file of one stem")
    put_adapter(tree, artist=BORIS)
    batch, executor = make_batch(plan_of(tree))

    batch.run()

    assert executor.trained == [DORA, ANNA]
    first, second = executor.bookmarks_before
    assert [first[f"none/none/{artist}"]["status"] for artist in EVERYBODY] == [
        "pending", "pending", "complete", "blocked",
    ]  # fmt: skip
    assert "share the stem" in first[f"none/none/{CLARA}"]["error"]
    assert first[f"none/none/{BORIS}"]["loss"] == 0.25
    assert second[f"none/none/{DORA}"]["status"] == "complete"
    assert statuses(tree) == ["complete", "complete", "complete", "blocked"]


def test_a_failed_artist_stops_nobody_else(tree: StudyTree, capsys: pytest.CaptureFixture[str]) -> None:
    batch, executor = make_batch(plan_of(tree), {ANNA: fail("the loss diverged")})

    batch.run()

    assert executor.trained == list(EVERYBODY)
    assert outcomes(batch) == ["trained", "failed", "trained", "trained"]
    assert batch.results[1].error == "the loss diverged"
    assert statuses(tree) == ["complete", "failed", "complete", "complete"]
    mark = mark_of(tree)
    assert (mark["error"], mark["steps"], mark["images"]) == ("the loss diverged", 1, 3)
    assert mark["log"] == f"models/lora/hf_diffusers/none__none/{ANNA}/train.log"
    assert {"started_at", "seconds", "updated_at"} <= mark.keys()
    said = capsys.readouterr().out
    assert f"[2/4] {ANNA}: failed: the loss diverged\n    | reading\n    | error: the loss diverged\n" in said


def test_a_later_success_clears_the_failure(tree: StudyTree) -> None:
    make_batch(plan_of(tree), {ANNA: fail("once")})[0].run()
    batch, executor = make_batch(plan_of(tree))

    batch.run()

    assert executor.trained == [ANNA]
    assert executor.bookmarks_before[0][f"none/none/{ANNA}"]["status"] == "pending"
    assert "error" not in executor.bookmarks_before[0][f"none/none/{ANNA}"]
    assert mark_of(tree)["status"] == "complete"
    assert "error" not in mark_of(tree)


def test_the_reason_of_an_executor_that_stopped_a_training_is_kept(tree: StudyTree) -> None:
    batch, _ = make_batch(plan_of(tree), {ANNA: stall})

    batch.run()

    assert mark_of(tree)["error"] == "no step for 30 minutes"
    assert outcomes(batch) == ["trained", "failed", "trained", "trained"]


def test_a_tracker_that_cannot_be_written_is_a_fault_of_the_batch(tree: StudyTree) -> None:
    open_tracker(tree).record("x", status="pending")
    tree.tracker.chmod(0o444)
    batch, executor = make_batch(plan_of(tree))

    with pytest.raises(BatchFault, match="cannot be written"):
        batch.run()

    assert executor.trained == []


def test_a_stalled_trainer_has_failed_though_it_calls_itself_interrupted(tree: StudyTree) -> None:
    def notice_and_stall(target: Target, on_step: OnStep) -> int:
        record = {"status": "interrupted", "error": "stopped by SIGTERM"}
        target.folder.record.write_text(json.dumps(record))
        return stall(target, on_step)

    batch, _ = make_batch(plan_of(tree), {ANNA: notice_and_stall})

    batch.run()

    assert (mark_of(tree)["status"], mark_of(tree)["error"]) == ("failed", "no step for 30 minutes")


def test_one_that_was_stopped_before_it_began_a_record_is_interrupted(tree: StudyTree) -> None:
    def be_stopped_early(target: Target, on_step: OnStep) -> int:
        target.folder.log.write_text("stopped by SIGHUP\n")
        return 129

    batch, _ = make_batch(plan_of(tree), dict.fromkeys(EVERYBODY, be_stopped_early))

    batch.run()

    assert outcomes(batch) == ["interrupted"] * 4
    assert mark_of(tree)["error"] == "stopped by SIGHUP"


def test_an_adapter_that_does_not_hold_what_it_promises_is_a_failure_whatever_the_exit_code(
    tree: StudyTree,
) -> None:
    batch, _ = make_batch(plan_of(tree, artists=("Anna_Berg",)), {ANNA: leave_broken})

    batch.run()

    assert outcomes(batch) == ["failed"]
    assert mark_of(tree)["status"] == "failed"
    assert not (output(tree) / WEIGHTS).exists()
    (kept,) = (output(tree) / "set_aside").glob(f"*-broken/{WEIGHTS}")
    assert kept.read_bytes() == b"torn"


def test_an_exit_code_of_zero_and_no_adapter_is_a_failure(tree: StudyTree) -> None:
    batch, _ = make_batch(plan_of(tree, artists=("Anna_Berg",)), {ANNA: lambda target, on_step: 0})

    batch.run()

    assert batch.results[0].error == "exit code 0 and no adapter"


def test_an_owed_upload_leaves_the_adapter_complete(tree: StudyTree) -> None:
    batch, _ = make_batch(plan_of(tree), {ANNA: owe_upload})

    batch.run()

    assert outcomes(batch) == ["trained"] * 4
    assert [result.owed for result in batch.results] == ["", "the Hub is away", "", ""]
    assert mark_of(tree)["status"] == "complete"
    assert mark_of(tree)["hub"] == {"owed": "sd35-lora-x", "error": "the Hub is away"}


# When to give up


def run_with(tree: StudyTree, endings: Sequence[Ending]) -> Batch:
    batch, _ = make_batch(plan_of(tree), dict(zip(EVERYBODY, endings, strict=True)))
    batch.run()
    return batch


def test_three_like_failures_in_a_row_stop_the_batch(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = run_with(tree, [fail("out of memory")] * 3 + [succeed])

    assert outcomes(batch) == ["failed"] * 3
    assert statuses(tree) == ["failed", "failed", "failed", "pending"]
    assert "3 artists in a row failed alike; the other 1 are left" in capsys.readouterr().out


def test_failures_that_differ_in_the_artist_only_are_alike(tree: StudyTree) -> None:
    def fail_in_own_folder(target: Target, on_step: OnStep) -> int | None:
        return fail(f"{target.folder}/x of {target.artist.name} cannot be written")(target, on_step)

    assert outcomes(run_with(tree, [fail_in_own_folder] * 4)) == ["failed"] * 3


@pytest.mark.parametrize(
    "endings",
    [
        [fail("a"), fail("b"), fail("a"), fail("b")],
        [fail("a"), fail("a"), fail("b"), fail("a")],
        [fail("a"), fail("a"), succeed, fail("a")],
        [fail("a"), succeed, fail("a"), fail("a")],
    ],
    ids=["alternating", "two and another", "a success between", "a success before"],
)
def test_other_failures_do_not_stop_it(tree: StudyTree, endings: list[Ending]) -> None:
    assert len(run_with(tree, endings).results) == 4


# Overwrite


def test_overwrite_sets_an_adapter_aside_when_its_turn_comes(tree: StudyTree) -> None:
    put_adapter(tree, artist=ANNA, hub={"repository_id": "lab/anna"})
    put_adapter(tree, artist=BORIS, recipe={"options": {}})
    (output(tree) / TRAIN_LOG).write_text("the first training\n")
    make_batch(plan_of(tree, artists=("Anna_Berg",)))[0].run()  # takes the bookmark as it was

    def look_from_dora(target: Target, on_step: OnStep) -> int:
        assert (output(tree) / WEIGHTS).exists()
        assert (output(tree, BORIS) / WEIGHTS).exists()
        return succeed(target, on_step)

    def look_from_anna(target: Target, on_step: OnStep) -> int:
        assert not any(output(tree).glob("*.safetensors"))
        assert (output(tree, BORIS) / WEIGHTS).exists()
        assert (output(tree) / TRAIN_LOG).read_text() == "the first training\n"
        return succeed(target, on_step)

    plan = plan_of(tree, overwrite=True)
    batch, executor = make_batch(plan, {DORA: look_from_dora, ANNA: look_from_anna})
    batch.run()

    assert outcomes(batch) == ["trained"] * 4
    assert len(list((output(tree) / "set_aside").glob(f"*-complete/{WEIGHTS}"))) == 1
    assert len(list((output(tree, BORIS) / "set_aside").glob(f"*-stale/{TRAINING_RUN}"))) == 1
    first, second = executor.bookmarks_before[:2]
    # Until its turn comes it is as complete as before.
    assert first[f"none/none/{ANNA}"]["status"] == "complete"
    assert first[f"none/none/{ANNA}"]["hub"] == {"repository_id": "lab/anna"}
    assert [second[f"none/none/{artist}"].get("note") for artist in EVERYBODY] == [
        None, OVERWRITTEN, None, None,
    ]  # fmt: skip
    # Nothing of the adapter that is gone: it would be taken for news of the one to come.
    assert second[f"none/none/{ANNA}"].keys() == {
        *("status", "images", "note", "log", "overwrite", "updated_at")
    }
    assert "note" not in mark_of(tree)


def test_bookmarks_say_pending_before_anything_is_set_aside(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_adapter(tree)
    seen = []

    set_aside = AdapterFolder.set_aside

    def recording(folder: AdapterFolder, reason: str) -> Path | None:
        seen.append((mark_of(tree)["status"], mark_of(tree)["note"]))
        return set_aside(folder, reason)

    monkeypatch.setattr(AdapterFolder, "set_aside", recording)
    make_batch(plan_of(tree, overwrite=True, artists=("Anna_Berg",)))[0].run()

    assert seen == [("pending", OVERWRITTEN)]


def test_a_broken_adapter_is_set_aside_under_that_name_and_is_no_overwrite(tree: StudyTree) -> None:
    put_adapter(tree)
    (output(tree) / WEIGHTS).write_bytes(b"torn")
    batch, executor = make_batch(plan_of(tree, artists=("Anna_Berg",)))

    batch.run()

    assert len(list((output(tree) / "set_aside").glob(f"*-broken/{WEIGHTS}"))) == 1
    assert "note" not in executor.bookmarks_before[0][f"none/none/{ANNA}"]
    assert json.loads((output(tree) / TRAINING_RUN).read_text())["status"] == "complete"


# Stop signals


def test_a_stop_signal_marks_the_artist_with_the_step_and_leaves_the_others_pending(tree: StudyTree) -> None:
    batch, executor = make_batch(plan_of(tree), {ANNA: be_stopped})

    with pytest.raises(Interrupted) as stop:
        batch.run()

    assert stop.value.exit_code == 143
    assert executor.trained == [DORA, ANNA]
    assert outcomes(batch) == ["trained", "interrupted"]
    assert statuses(tree) == ["complete", "interrupted", "pending", "pending"]
    assert (mark_of(tree)["steps"], mark_of(tree)["error"]) == (7, "stopped by SIGTERM")


def test_a_second_ctrl_c_does_not_lose_the_mark(tree: StudyTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def hurry(child: StagedChild, number: int, grace_seconds: float) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(StagedChild, "stop", hurry)
    batch, _ = make_batch(plan_of(tree), {ANNA: be_stopped})

    with pytest.raises(Interrupted) as stop:
        batch.run()

    assert stop.value.exit_code == 130
    assert outcomes(batch) == ["trained", "interrupted"]
    assert (mark_of(tree)["status"], mark_of(tree)["steps"]) == ("interrupted", 7)
    assert list(tree.data_root.rglob(".claim*")) == []


def test_a_stopped_artist_has_the_steps_that_its_trainer_recorded(tree: StudyTree) -> None:
    def be_stopped_later(target: Target, on_step: OnStep) -> int:
        target.folder.record.write_text(json.dumps({"status": "interrupted", "steps": 9}))
        return be_stopped(target, on_step)

    with pytest.raises(Interrupted):
        make_batch(plan_of(tree), {ANNA: be_stopped_later})[0].run()

    assert mark_of(tree)["steps"] == 9


def test_a_stop_signal_that_comes_while_a_claim_is_refused_is_not_lost(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Claim:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ClaimedElsewhere("in use")

    batch, _ = make_batch(plan_of(tree))
    monkeypatch.setattr(Claim, "take_anew", refuse)

    with stop_signals_raise(), pytest.raises(Interrupted):
        batch.run()

    assert outcomes(batch) == []


def test_it_is_said_first_that_an_artist_is_trained(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    make_batch(plan_of(tree, artists=("Anna_Berg",)))[0].run()

    said = capsys.readouterr().out
    assert said.index("training on 3 images") < said.index("complete in")
