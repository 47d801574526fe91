"""Batches, whatever executor carries them out: order, bookmarks, what a failure stops, what others do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault
from mimicry.common.processes import Interrupted
from mimicry.study.tree import Artist, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS
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
    bookmarks_in,
    listing,
    plan_of,
    put_adapter,
)
from tests.tuning.staged_batch import (
    Ending,
    OnStep,
    fail,
    leave_broken,
    mark_of,
    output,
    owe_upload,
    statuses,
    succeed,
)
from tests.tuning.staged_executors import Stage, batch_on, staged

HERE, SLURM, THREADS = "this machine", "slurm", "threads"


@pytest.fixture(params=[HERE, SLURM, THREADS])
def stage(
    request: pytest.FixtureRequest, tree: StudyTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    with staged(request.param, tree, tmp_path, monkeypatch) as found:
        yield found


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The name of the executor."""
    return str(request.node.callspec.params["stage"])


def run(stage: Stage, *, wait: bool = True, **request: object) -> Batch:
    batch = batch_on(stage, plan_of(stage.tree, **request), wait=wait)  # type: ignore[arg-type]
    batch.run()
    return batch


def words(batch: Batch) -> dict[Artist, str]:
    return {result.target.artist: result.word for result in batch.results}


def errors(batch: Batch) -> dict[Artist, str]:
    return {result.target.artist: result.error for result in batch.results}


def test_all_are_trained_in_the_order_of_the_plan(
    stage: Stage, tree: StudyTree, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = run(stage)

    assert stage.trained == list(EVERYBODY)
    assert list(words(batch)) == list(EVERYBODY)
    assert set(words(batch).values()) == {"trained"}
    assert [(result.loss, result.error, result.owed) for result in batch.results] == [(0.25, "", "")] * 4
    assert statuses(tree) == ["complete"] * 4
    mark = mark_of(tree)
    assert (mark["images"], mark["steps"], mark["loss"]) == (3, 500, 0.25)
    assert mark.keys().isdisjoint({"error", "note"})
    said = capsys.readouterr().out
    assert said.index(f"[2/4] {ANNA}: training on 3 images; ") < said.index(f"[2/4] {ANNA}: complete in ")
    assert said.count("mean loss 0.2500\n") == 4


def test_what_is_to_come_is_recorded_before_the_first_training(stage: Stage, tree: StudyTree) -> None:
    (tree.images_of(tree.original_art, CLARA) / f"{STEMS[0]}.jpg").write_bytes(b"a second file of one stem")
    put_adapter(tree, artist=BORIS)

    run(stage)

    assert stage.trained == [DORA, ANNA]
    first, second = stage.bookmarks_before
    assert [first[f"none/none/{artist}"]["status"] for artist in EVERYBODY] == [
        "waiting", "waiting", "complete", "blocked",
    ]  # fmt: skip
    assert "share the stem" in first[f"none/none/{CLARA}"]["error"]
    assert first[f"none/none/{BORIS}"]["loss"] == 0.25
    assert second[f"none/none/{DORA}"]["status"] == "complete"
    assert statuses(tree) == ["complete", "complete", "complete", "blocked"]


def test_a_failure_stops_no_other(stage: Stage, tree: StudyTree, capsys: pytest.CaptureFixture[str]) -> None:
    stage.endings[ANNA] = fail("the loss diverged")

    batch = run(stage)

    assert stage.trained == list(EVERYBODY)
    assert words(batch) == dict.fromkeys(EVERYBODY, "trained") | {ANNA: "failed"}
    assert errors(batch)[ANNA] == "the loss diverged"
    assert statuses(tree) == ["complete", "failed", "complete", "complete"]
    mark = mark_of(tree)
    assert (mark["error"], mark["steps"], mark["images"]) == ("the loss diverged", 1, 3)
    assert mark["log"] == f"models/lora/hf_diffusers/none__none/{ANNA}/train.log"
    assert {"started_at", "seconds", "updated_at"} <= mark.keys()
    assert f"[2/4] {ANNA}: failed: the loss diverged" in capsys.readouterr().out


def test_a_later_success_clears_the_failure(stage: Stage, tree: StudyTree) -> None:
    stage.endings[ANNA] = fail("once")
    run(stage)
    stage.endings.clear()
    stage.trained.clear()
    stage.bookmarks_before.clear()

    run(stage)

    assert stage.trained == [ANNA]
    before = stage.bookmarks_before[0][f"none/none/{ANNA}"]
    assert (before["status"], before.get("error")) == ("waiting", None)
    assert (mark_of(tree)["status"], mark_of(tree).get("error")) == ("complete", None)


def test_a_tracker_that_cannot_be_written_is_a_fault_of_the_batch(stage: Stage, tree: StudyTree) -> None:
    open_tracker(tree).record("x", status="waiting")
    tree.tracker.chmod(0o444)

    with pytest.raises(BatchFault, match="cannot be written"):
        run(stage)

    assert stage.trained == []
    assert not tree.queue("slurm").exists()


def test_a_broken_adapter_is_a_failure_whatever_the_exit_code(stage: Stage, tree: StudyTree) -> None:
    stage.endings[ANNA] = leave_broken

    batch = run(stage, artists=("Anna_Berg",))

    assert words(batch) == {ANNA: "failed"}
    assert mark_of(tree)["status"] == "failed"
    assert not (output(tree) / WEIGHTS).exists()
    (kept,) = (output(tree) / "set_aside").glob(f"*-broken/{WEIGHTS}")
    assert kept.read_bytes() == b"torn"


def test_exit_code_zero_without_an_adapter_is_a_failure(stage: Stage) -> None:
    stage.endings[ANNA] = lambda target, on_step: 0
    assert errors(run(stage, artists=("Anna_Berg",))) == {ANNA: "exit code 0 and no adapter"}


def test_an_owed_upload_leaves_the_adapter_complete(stage: Stage, tree: StudyTree) -> None:
    stage.endings[ANNA] = owe_upload

    batch = run(stage)

    assert set(words(batch).values()) == {"trained"}
    assert [result.owed for result in batch.results] == ["", "the Hub is away", "", ""]
    assert mark_of(tree)["status"] == "complete"
    assert mark_of(tree)["hub"] == {"owed": "sd35-lora-x", "error": "the Hub is away"}


class TestGivingUp:
    def run_with(self, stage: Stage, endings: list[Ending]) -> Batch:
        stage.endings |= dict(zip(EVERYBODY, endings, strict=True))
        return run(stage)

    def test_three_failures_alike_end_it(
        self, stage: Stage, kind: str, tree: StudyTree, capsys: pytest.CaptureFixture[str]
    ) -> None:
        batch = self.run_with(stage, [fail("out of memory")] * 3 + [succeed])

        assert stage.trained == [DORA, ANNA, BORIS]
        # What waits in a queue is cancelled.
        last = {CLARA: "interrupted"} if kind == SLURM else {}
        assert words(batch) == dict.fromkeys((DORA, ANNA, BORIS), "failed") | last
        assert statuses(tree) == ["failed"] * 3 + ["interrupted" if last else "waiting"]
        said = capsys.readouterr().out
        assert "3 artists in a row failed alike; " in said
        assert ("1 jobs that had not begun are cancelled" in said) == (kind == SLURM)
        assert ("the other 1 are left" in said) == (kind != SLURM)

    def test_failures_that_differ_in_the_artist_only_are_alike(self, stage: Stage) -> None:
        def fail_in_own_folder(target: Target, on_step: OnStep) -> int | None:
            return fail(f"{target.folder}/x of {target.artist.name} cannot be written")(target, on_step)

        batch = self.run_with(stage, [fail_in_own_folder] * 4)

        assert list(words(batch).values()).count("failed") == 3
        assert len(stage.trained) == 3

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
    def test_other_failures_do_not(self, stage: Stage, endings: list[Ending]) -> None:
        batch = self.run_with(stage, endings)

        assert len(stage.trained) == len(batch.results) == 4


class TestOverwrite:
    def test_an_adapter_is_set_aside_when_its_turn_comes(self, stage: Stage, tree: StudyTree) -> None:
        put_adapter(tree, artist=ANNA, hub={"repository_id": "lab/anna"})
        put_adapter(tree, artist=BORIS, recipe={"options": {}})
        (output(tree) / TRAIN_LOG).write_text("the first training\n")
        run(stage, artists=("Anna_Berg",))  # takes the bookmark as it was
        seen: dict[Artist, list[bool]] = {}

        def look(target: Target, on_step: OnStep) -> int:
            seen[target.artist] = [(output(tree, artist) / WEIGHTS).exists() for artist in (ANNA, BORIS)]
            assert (output(tree) / TRAIN_LOG).read_text() == "the first training\n"
            return succeed(target, on_step)

        stage.endings = dict.fromkeys(EVERYBODY, look)
        batch = run(stage, overwrite=True)

        assert set(words(batch).values()) == {"trained"}
        assert seen == {
            DORA: [True, True],
            ANNA: [False, True],
            BORIS: [True, False],
            CLARA: [True, True],
        }
        assert len(list((output(tree, BORIS) / "set_aside").glob(f"*-stale/{TRAINING_RUN}"))) == 1
        assert len(list((output(tree) / "set_aside").glob(f"*-complete/{TRAINING_RUN}"))) == 1
        first, second = stage.bookmarks_before[:2]
        # Until its turn comes it is as complete as before.
        assert first[f"none/none/{ANNA}"]["status"] == "complete"
        assert first[f"none/none/{ANNA}"]["hub"] == {"repository_id": "lab/anna"}
        assert second[f"none/none/{ANNA}"]["note"] == OVERWRITTEN
        # Nothing of the adapter that is gone: it would be taken for news of the one to come.
        assert second[f"none/none/{ANNA}"].keys() == {
            *("status", "images", "note", "log", "overwrite", "updated_at")
        }
        assert (mark_of(tree)["status"], mark_of(tree).get("note")) == ("complete", None)


class TestOtherCalls:
    def test_what_is_complete_is_left_alone(self, stage: Stage, tree: StudyTree) -> None:
        folder = put_adapter(tree)
        before = listing(folder)

        batch = run(stage)

        assert ANNA not in stage.trained
        assert ANNA not in words(batch)
        assert listing(folder) == before
        assert statuses(tree) == ["complete"] * 4

    def test_without_waiting_one_that_is_trained_elsewhere_is_left(
        self, stage: Stage, kind: str, tree: StudyTree
    ) -> None:
        with Claim.take_anew(output(tree)):
            batch = run(stage, wait=False)

        ours = "queued" if kind == SLURM else "trained"
        assert words(batch) == dict.fromkeys((DORA, BORIS, CLARA), ours) | {ANNA: "claimed"}
        assert errors(batch)[ANNA].startswith("in use by pid ")
        assert f"none/none/{ANNA}" not in bookmarks_in(tree)

    def test_one_that_another_call_completes_is_skipped(self, stage: Stage, tree: StudyTree) -> None:
        claim = Claim.take_anew(output(tree))

        def complete() -> None:
            put_adapter(tree)
            claim.release()

        stage.meanwhile = complete
        batch = run(stage)

        assert stage.trained == [DORA, BORIS, CLARA]
        assert words(batch) == dict.fromkeys((DORA, BORIS, CLARA), "trained") | {ANNA: "skipped"}
        assert errors(batch)[ANNA] == "complete: trained by another call"
        assert statuses(tree) == ["complete"] * 4

    def test_one_that_another_call_leaves_is_trained(self, stage: Stage, tree: StudyTree) -> None:
        claim = Claim.take_anew(output(tree))
        stage.meanwhile = claim.release

        run(stage)

        assert stage.trained == [DORA, BORIS, CLARA, ANNA]
        assert statuses(tree) == ["complete"] * 4

    def test_one_that_failed_elsewhere_is_not_repeated(self, stage: Stage, tree: StudyTree) -> None:
        claim = Claim.take_anew(output(tree))

        def burn() -> None:
            open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="failed", error="it burned")
            claim.release()

        stage.meanwhile = burn
        batch = run(stage)

        assert ANNA not in stage.trained
        assert (words(batch)[ANNA], errors(batch)[ANNA]) == ("failed", "it burned (by another call)")

    def test_a_failure_of_an_earlier_day_is_tried_again(self, stage: Stage, tree: StudyTree) -> None:
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="failed", error="it burned")
        claim = Claim.take_anew(output(tree))
        stage.meanwhile = claim.release

        run(stage)

        assert stage.trained[-1] == ANNA

    def test_one_that_was_completed_since_the_plan_is_skipped(self, stage: Stage, tree: StudyTree) -> None:
        batch = batch_on(stage, plan_of(tree))
        put_adapter(tree)

        batch.run()

        assert stage.trained == [DORA, BORIS, CLARA]
        assert words(batch) == dict.fromkeys((DORA, BORIS, CLARA), "trained") | {ANNA: "skipped"}
        assert errors(batch)[ANNA] == "complete: trained by another call"
        assert mark_of(tree)["status"] == "complete"

    def test_two_calls_that_overwrite_train_once_and_keep_what_is_fresh(
        self, stage: Stage, tree: StudyTree
    ) -> None:
        put_adapter(tree)
        first = batch_on(stage, plan_of(tree, overwrite=True))
        second = batch_on(stage, plan_of(tree, overwrite=True))
        first.run()
        stage.trained.clear()
        fresh = (output(tree) / WEIGHTS).stat()

        second.run()

        assert stage.trained == []
        assert set(words(second).values()) == {"skipped"}
        assert (output(tree) / WEIGHTS).stat().st_ino == fresh.st_ino
        assert len(list((output(tree) / "set_aside").iterdir())) == 1

    def test_no_claim_is_left(self, stage: Stage, tree: StudyTree) -> None:
        run(stage)
        assert list(tree.data_root.rglob(".claim*")) == []


def test_a_stop_signal_ends_what_ends_with_this_program_and_no_other(
    stage: Stage, kind: str, tree: StudyTree
) -> None:
    def go_on(target: Target, on_step: OnStep) -> None:
        if not target.folder.metrics.exists():
            target.folder.metrics.write_text("")
            on_step({"step": 1, "loss": 0.5})

    def stop() -> None:
        raise Interrupted(15)

    stage.endings[DORA] = go_on
    stage.at_look = stop
    batch = batch_on(stage, plan_of(tree))

    with pytest.raises(Interrupted) as stopped:
        batch.run()

    assert stopped.value.exit_code == 143
    if kind == SLURM:
        assert words(batch) == dict.fromkeys(EVERYBODY, "queued")
        assert statuses(tree) == ["waiting"] * 4
    else:
        assert words(batch) == {DORA: "interrupted"}
        assert statuses(tree) == ["interrupted", "waiting", "waiting", "waiting"]
        assert mark_of(tree, DORA)["error"] == "stopped by SIGTERM"
    stage.endings.clear()
    run(stage)
    assert statuses(tree) == ["complete"] * 4


def test_a_queued_cell_is_not_recorded_as_complete(stage: Stage, kind: str, tree: StudyTree) -> None:
    run(stage, wait=False)
    batch = batch_on(stage, plan_of(tree, bookmarks=bookmarks_in(tree)), wait=False)

    batch.run()

    assert statuses(tree) == ["waiting" if kind == SLURM else "complete"] * 4
