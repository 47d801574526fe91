"""--overwrite and --retrain-stale: stopped, taken up, by several calls; each adapter in its turn."""

from dataclasses import replace
from typing import Any

import pytest

from mimicry.common.children import Interrupted
from mimicry.study.states import State
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.target import Target
from tests.small_study import (
    ANNA,
    BORIS,
    CLARA,
    CONFIG,
    DORA,
    EVERYBODY,
    asked_for,
    bookmarks_in,
    plan_of,
    put_adapter,
    target_of,
    write_adapter,
)
from tests.tuning.staged_batch import Ending, OnStep, be_stopped, make_batch, outcomes, output, statuses


def at(finished_at: str) -> Ending:
    """Complete, and say that it ended at another time than other trainings."""

    def ending(target: Target, on_step: OnStep) -> int:
        write_adapter(target.folder.path, target.images.path, finished_at=finished_at)
        return 0

    return ending


def overwrite_plan(tree: StudyTree, **asked: Any) -> Plan:
    return plan_of(tree, bookmarks=open_tracker(tree).bookmarks(), overwrite=True, **asked)


class TestStoppedOverwrite:
    """Dora was trained again, Anna was being trained, Boris and Clara are as they were."""

    @pytest.fixture
    def stopped(self, tree: StudyTree) -> StudyTree:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        batch, _ = make_batch(overwrite_plan(tree), {DORA: at("later"), ANNA: be_stopped})
        with pytest.raises(Interrupted):
            batch.run()
        return tree

    def test_the_same_command_trains_the_others(self, stopped: StudyTree) -> None:
        plan = overwrite_plan(stopped)

        assert [target.state for target in plan.targets] == [State.COMPLETE, *[State.PENDING] * 3]
        assert "trained again by this --overwrite" in target_of(plan, DORA).reason
        batch, executor = make_batch(plan, dict.fromkeys(EVERYBODY, at("later")))
        batch.run()
        assert executor.trained == [ANNA, BORIS, CLARA]
        assert statuses(stopped) == ["complete"] * 4

    def test_once_it_is_finished_another_one_begins(self, stopped: StudyTree) -> None:
        make_batch(overwrite_plan(stopped), dict.fromkeys(EVERYBODY, at("later")))[0].run()

        batch, executor = make_batch(overwrite_plan(stopped), dict.fromkeys(EVERYBODY, at("much later")))
        batch.run()

        assert executor.trained == list(EVERYBODY)

    def test_what_is_done_is_trained_again_for_another_recipe(self, stopped: StudyTree) -> None:
        plan = overwrite_plan(stopped, asked=asked_for(seed=7))

        assert [target.state for target in plan.targets] == [State.PENDING] * 4

    def test_an_artist_that_is_done_is_trained_again_alone(self, stopped: StudyTree) -> None:
        plan = overwrite_plan(stopped, artists=("Dora_Eik",))

        assert target_of(plan, DORA).state is State.PENDING

    def test_without_overwrite_the_artist_that_was_stopped_is_trained(self, stopped: StudyTree) -> None:
        plan = plan_of(stopped, bookmarks=open_tracker(stopped).bookmarks())

        assert [(target.state, target.reason) for target in plan.targets] == [
            (State.COMPLETE, ""),
            (State.PENDING, "its old adapter was set aside by --overwrite"),
            *[(State.COMPLETE, "")] * 2,
        ]
        batch, executor = make_batch(plan)
        batch.run()
        assert executor.trained == [ANNA]
        assert all("note" not in mark for mark in bookmarks_in(stopped).values())

    def test_one_that_was_killed_before_it_could_record_its_end(self, tree: StudyTree) -> None:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        batch, _ = make_batch(overwrite_plan(tree), {DORA: at("later"), ANNA: at("later"), BORIS: be_stopped})
        with pytest.raises(Interrupted):
            batch.run()
        # As if the call had been killed between the end of Anna's training and its record in the tracker.
        open_tracker(tree).record(f"hf_diffusers/none/none/{ANNA}", status="pending")

        plan = overwrite_plan(tree)

        assert [target.state for target in plan.targets] == [State.COMPLETE] * 2 + [State.PENDING] * 2

    def test_a_lost_tracker_trains_all_again(self, stopped: StudyTree) -> None:
        stopped.tracker.unlink()

        assert [target.state for target in overwrite_plan(stopped).targets] == [State.PENDING] * 4

    def test_one_that_another_call_trains_before_ours_has_marked_it_is_done(self, tree: StudyTree) -> None:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        ours = overwrite_plan(tree)
        make_batch(overwrite_plan(tree, artists=("Dora_Eik",)), {DORA: at("later")})[0].run()
        batch, _ = make_batch(ours, {ANNA: be_stopped})
        with pytest.raises(Interrupted):
            batch.run()

        assert target_of(overwrite_plan(tree), DORA).state is State.COMPLETE

    def test_another_call_on_it_trains_each_once(self, tree: StudyTree) -> None:
        for artist in EVERYBODY:
            put_adapter(tree, artist=artist)
        theirs, ours = overwrite_plan(tree), overwrite_plan(tree)
        make_batch(theirs, dict.fromkeys(EVERYBODY, at("later")))[0].run()

        batch, executor = make_batch(ours)
        batch.run()

        assert executor.trained == []
        assert outcomes(batch) == ["skipped"] * 4


def test_stale_adapters_are_trained_again_in_their_turn(tree: StudyTree) -> None:
    put_adapter(tree, artist=ANNA)
    put_adapter(tree, artist=BORIS, config=replace(CONFIG, seed=7))
    plan = plan_of(tree, retrain_stale=True)
    assert "seed 7 -> 42" in target_of(plan, BORIS).reason
    batch, executor = make_batch(plan, {CLARA: be_stopped})
    with pytest.raises(Interrupted):
        batch.run()

    again = plan_of(tree, bookmarks=open_tracker(tree).bookmarks(), retrain_stale=True)

    assert executor.trained == [DORA, BORIS, CLARA]
    assert len(list((output(tree, BORIS) / "set_aside").glob(f"*-stale/{WEIGHTS}"))) == 1
    assert [target.state for target in again.targets] == [State.COMPLETE] * 3 + [State.PENDING]
