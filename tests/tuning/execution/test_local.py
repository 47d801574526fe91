"""Batches on this machine: side by side, with their signals, lines and places."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mimicry.common.claims import Claim
from mimicry.common.errors import ClaimedElsewhere
from mimicry.common.processes import Interrupted, stop_signals_raise
from mimicry.study.tree import Artist, StudyTree
from mimicry.tuning.adapters.folder import WEIGHTS, AdapterFolder
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.execution.local import Place
from mimicry.tuning.planning.display import StepDisplay
from mimicry.tuning.planning.plan import OVERWRITTEN
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    DORA,
    EVERYBODY,
    plan_of,
    put_adapter,
    write_study,
)
from tests.tuning.staged_batch import (
    Ending,
    OnStep,
    StagedChild,
    be_stopped,
    fail,
    make_batch,
    mark_of,
    outcomes,
    output,
    stall,
    statuses,
    succeed,
)

TWO = (Place(), Place())
TWO_GPUS = (Place(("0",)), Place(("1",)))
CROWD = [Artist("historical", "baroque", f"Artist_{number}") for number in range(7)]


def step_until(condition: Callable[[], bool], then: Ending = succeed) -> Ending:
    """Take a step, and go on until the condition holds."""

    def ending(target: Target, on_step: OnStep) -> int | None:
        if condition():
            return then(target, on_step)
        if not target.folder.metrics.exists():
            on_step({"step": 1, "loss": 0.5})
        return None

    return ending


def fail_at_once(target: Target, on_step: OnStep) -> int:
    (target.folder.log).write_text("error: no library\n")
    return 1


def test_the_first_training_of_a_recipe_begins_alone(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    polls = []

    def begin_slowly(target: Target, on_step: OnStep) -> int | None:
        polls.append(list(executor.trained))
        if len(polls) == 3:
            on_step({"step": 1, "loss": 0.5})
        return succeed(target, on_step) if len(executor.trained) == 3 else None

    batch, executor = make_batch(plan_of(tree), {DORA: begin_slowly}, places=(*TWO, Place()))
    batch.run()

    assert polls == [[DORA]] * 3 + [[DORA, ANNA, BORIS]]
    assert sorted(outcomes(batch)) == ["trained"] * 4
    assert capsys.readouterr().out.count("the first training of a recipe begins alone") == 1


def test_after_a_first_training_that_failed_before_a_step_the_next_one_begins_alone(tree: StudyTree) -> None:
    together = []

    def look(target: Target, on_step: OnStep) -> int:
        together.append(list(executor.trained))
        return fail_at_once(target, on_step)

    batch, executor = make_batch(plan_of(tree), dict.fromkeys(EVERYBODY, look), places=TWO)
    batch.run()

    assert together == [[DORA], [DORA, ANNA], [DORA, ANNA, BORIS]]
    assert outcomes(batch) == ["failed"] * 3


def test_one_that_fails_frees_its_place_at_once(tree: StudyTree) -> None:
    long = step_until(lambda: executor.trained == list(EVERYBODY))
    batch, executor = make_batch(plan_of(tree), {DORA: long, ANNA: fail("it burned")}, places=TWO)

    batch.run()

    ended = [(result.target.artist, result.word) for result in batch.results]
    assert ended[0] == (ANNA, "failed")
    assert set(ended[1:]) == {(BORIS, "trained"), (CLARA, "trained"), (DORA, "trained")}


@pytest.mark.parametrize(
    ("last", "words"),
    [(succeed, ["failed"] * 3 + ["trained"] * 4), (fail("no disk"), ["failed"] * 4)],
    ids=["one that runs ends well", "it fails alike"],
)
def test_three_like_failures_begin_no_more_while_others_run_on(
    last: Ending, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    polls = []

    def outlast(target: Target, on_step: OnStep) -> int | None:
        polls.append(len(executor.trained))
        return step_until(lambda: polls.count(4) > 3, last)(target, on_step)

    plan = plan_of(write_study(tmp_path / "crowd", CROWD))
    endings: dict[Artist, Ending] = {CROWD[0]: outlast} | dict.fromkeys(CROWD[1:4], fail("no disk"))
    batch, executor = make_batch(plan, endings, places=TWO)
    batch.run()

    assert outcomes(batch) == words
    assert max(polls) == 4  # none was begun while it ran
    said = capsys.readouterr().out
    assert ("the other 3 are left for the next call" in said) == (last is not succeed)


def test_a_gpu_on_which_trainings_fail_alike_is_left_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def by_gpu(target: Target, on_step: OnStep) -> int | None:
        gpu = executor.gpus[executor.trained.index(target.artist)]
        if gpu == "1":
            return fail("CUDA error: out of memory")(target, on_step)
        return step_until(lambda: executor.gpus.count("1") == 3)(target, on_step)

    plan = plan_of(write_study(tmp_path / "crowd", CROWD))
    batch, executor = make_batch(plan, dict.fromkeys(CROWD, by_gpu), places=TWO_GPUS)
    batch.run()

    assert executor.gpus == ["0", "1", "1", "1", "0", "0", "0"]
    assert sorted(outcomes(batch)) == ["failed"] * 3 + ["trained"] * 4
    assert (
        "GPU 1: 3 trainings in a row failed alike; nothing more is trained there" in capsys.readouterr().out
    )


def test_while_host_memory_is_short_a_training_waits_for_those_that_run(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tree)
    monkeypatch.setattr(type(plan.call.stack.traits), "host_bytes", lambda *_: 5 << 30)
    together = []

    def look(target: Target, on_step: OnStep) -> int | None:
        together.append(len(executor.trained))
        return step_until(lambda: together.count(len(executor.trained)) > 2)(target, on_step)

    batch, executor = make_batch(plan, dict.fromkeys(EVERYBODY, look), places=TWO)
    executor.free_host_bytes = lambda: 4 << 30
    batch.run()

    assert together == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    said = capsys.readouterr().out
    assert said.count("waits for free host memory: each reads 5.0 GiB before its first step") == 1


def test_a_second_ctrl_c_reaches_all_that_run(tree: StudyTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(child: StagedChild, number: int, grace_seconds: float) -> None:
        if child.target.artist == DORA:
            raise Interrupted(signal.SIGINT)

    def interrupt(target: Target, on_step: OnStep) -> int:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(StagedChild, "stop", stop)
    endings: dict[Artist, Ending] = {DORA: step_until(lambda: False), ANNA: interrupt}
    batch, executor = make_batch(plan_of(tree), endings, places=TWO)
    with pytest.raises(Interrupted) as stopped:
        batch.run()

    assert stopped.value.number == signal.SIGINT
    assert executor.signals == [
        (DORA, signal.SIGTERM),
        (ANNA, signal.SIGTERM),
        (ANNA, signal.SIGINT),
    ]
    assert outcomes(batch) == ["interrupted"] * 2


def test_each_training_has_a_line_of_its_own_and_leaves_it_to_the_next(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []

    def shown(label: str, total: int, position: int = 0) -> StepDisplay:
        lines.append((label, position))
        return StepDisplay(label, total, position)

    monkeypatch.setattr("mimicry.tuning.execution.bookkeeping.StepDisplay", shown)
    long = step_until(lambda: len(executor.trained) == 4)
    batch, executor = make_batch(plan_of(tree), {ANNA: long}, places=TWO)
    batch.run()

    assert lines == [("Dora_Eik", 1), ("Anna_Berg", 1), ("Boris_Cole", 2), ("Clara_Dunn", 2)]


def test_several_that_others_have_left_are_trained_side_by_side(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = [Claim.take_anew(output(tree, artist)) for artist in (ANNA, BORIS)]
    plan = plan_of(tree)

    def leave(_: float) -> None:
        while claims:
            claims.pop().release()

    monkeypatch.setattr("mimicry.tuning.execution.batch.time.sleep", leave)
    meet = step_until(lambda: len(executor.trained) == 4)
    batch, executor = make_batch(plan, {ANNA: meet, BORIS: meet}, places=TWO)
    batch.run()

    assert sorted(outcomes(batch)) == ["trained"] * 4


def test_the_reason_of_an_executor_that_stopped_a_training_is_kept(tree: StudyTree) -> None:
    batch, _ = make_batch(plan_of(tree), {ANNA: stall})

    batch.run()

    assert mark_of(tree)["error"] == "no step for 30 minutes"
    assert outcomes(batch) == ["trained", "failed", "trained", "trained"]


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

    assert seen == [("waiting", OVERWRITTEN)]


def test_a_broken_adapter_is_set_aside_under_that_name_and_is_no_overwrite(tree: StudyTree) -> None:
    put_adapter(tree)
    (output(tree) / WEIGHTS).write_bytes(b"torn")
    batch, executor = make_batch(plan_of(tree, artists=("Anna_Berg",)))

    batch.run()

    assert len(list((output(tree) / "set_aside").glob(f"*-broken/{WEIGHTS}"))) == 1
    assert "note" not in executor.bookmarks_before[0][f"none/none/{ANNA}"]
    assert json.loads((output(tree) / TRAINING_RUN).read_text())["status"] == "complete"


def test_a_stop_signal_marks_the_artist_with_the_step_and_leaves_the_others_pending(tree: StudyTree) -> None:
    batch, executor = make_batch(plan_of(tree), {ANNA: be_stopped})

    with pytest.raises(Interrupted) as stop:
        batch.run()

    assert stop.value.exit_code == 143
    assert executor.trained == [DORA, ANNA]
    assert outcomes(batch) == ["trained", "interrupted"]
    assert statuses(tree) == ["complete", "interrupted", "waiting", "waiting"]
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


def test_a_failure_is_shown_with_its_last_lines_and_a_success_with_its_time(
    tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    make_batch(plan_of(tree), {ANNA: fail("the loss diverged")})[0].run()

    said = capsys.readouterr().out
    assert f"[2/4] {ANNA}: failed: the loss diverged\n    | reading\n    | error: the loss diverged\n" in said
    assert f"[1/4] {DORA}: complete in 0:00, mean loss 0.2500\n" in said
