"""A plan carried out by a cluster: what is submitted, what is followed, and what becomes of it."""

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault
from mimicry.common.processes import Interrupted
from mimicry.study.tree import State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.slurm import SlurmExecutor, jobs_of_study
from mimicry.tuning.options.slurm_options import SlurmSettings
from mimicry.tuning.planning.display import BatchDisplay
from mimicry.tuning.planning.plan import Plan
from tests.small_study import ANNA, BORIS, CLARA, DORA, EVERYBODY, plan_of, put_adapter
from tests.tuning.fake_slurm import FakeSlurm, FakeSubmitit, put_submission
from tests.tuning.staged_batch import mark_of

KEYS = [f"hf_diffusers/none/none/{artist}" for artist in EVERYBODY]


@dataclass
class Cluster:
    """A stand-in for Slurm, in which something happens at each look of the batch."""

    tree: StudyTree
    slurm: FakeSlurm
    submitit: FakeSubmitit
    looks: list[Callable[[], object]] = field(default_factory=list)
    clock: float = 1000.0

    def batch(self, plan: Plan, *, wait: bool = True, max_parallel: int | None = None) -> Batch:
        executor = SlurmExecutor(SlurmSettings(max_parallel=max_parallel))
        return Batch(plan, executor, open_tracker(self.tree), BatchDisplay([2]), wait=wait)

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if not self.looks:
            pytest.fail("the batch waits for ever")
        self.looks.pop(0)()

    def show(self, *states: str) -> None:
        """Show the jobs of the last submission in these states, with a reason after a blank."""
        (name,) = (path.name for path in self.tree.queue("slurm").glob("mimicry-*"))
        rows = [state.partition(" ") for state in states]
        self.slurm.show(*(f"{name}|1|{n}|{row[0]}|n1|{row[2] or 'None'}" for n, row in enumerate(rows)))


@pytest.fixture
def cluster(tree: StudyTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster(
        tree, FakeSlurm.install(tmp_path / "bin", monkeypatch), FakeSubmitit().install(monkeypatch)
    )
    clock = types.SimpleNamespace(sleep=found.sleep, monotonic=lambda: found.clock)
    for module in ("batch", "cluster"):
        monkeypatch.setattr(f"mimicry.tuning.execution.{module}.time", clock)
    return found


def words(batch: Batch) -> dict[str, str]:
    return {result.target.artist.name: result.word for result in batch.results}


def test_what_jobs_have_trained_is_told(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    def train() -> None:
        for artist in EVERYBODY:
            put_adapter(cluster.tree, artist=artist)
        cluster.show(*["COMPLETED"] * 4)

    cluster.looks = [lambda: cluster.show(*["RUNNING"] * 4), train, lambda: None]
    batch = cluster.batch(plan_of(cluster.tree))
    batch.run()
    assert set(words(batch).values()) == {"trained"}
    assert mark_of(cluster.tree)["status"] == "complete"
    said = capsys.readouterr().out
    assert "submitted 4 jobs, 1" in said
    assert "job 1_0 is running on n1" in said


def test_without_waiting_all_are_queued(cluster: Cluster) -> None:
    batch = cluster.batch(plan_of(cluster.tree), wait=False)
    batch.run()
    assert set(words(batch).values()) == {"queued"}
    assert mark_of(cluster.tree)["status"] == "waiting"


def test_what_is_queued_is_followed_and_not_submitted_again(cluster: Cluster) -> None:
    put_submission(cluster.tree, KEYS)
    cluster.show("RUNNING", "PENDING", "PENDING", "COMPLETED")
    plan = plan_of(cluster.tree, queue=jobs_of_study(cluster.tree))
    batch = cluster.batch(plan, wait=False)
    batch.run()
    (submitted,) = cluster.submitit.submitted
    assert [task.folder.name for task in submitted] == [EVERYBODY[3].name]


def test_what_another_call_has_submitted_meanwhile_is_not_submitted_again(cluster: Cluster) -> None:
    plan = plan_of(cluster.tree)
    put_submission(cluster.tree, KEYS)
    cluster.show(*["PENDING"] * 4)
    batch = cluster.batch(plan, wait=False)
    batch.run()
    assert cluster.submitit.submitted == []
    assert set(words(batch).values()) == {"queued"}


def test_two_calls_do_not_submit_at_the_same_time(cluster: Cluster) -> None:
    with (
        Claim.take_anew(cluster.tree.queue("slurm")),
        pytest.raises(BatchFault, match="another call is submitting"),
    ):
        cluster.batch(plan_of(cluster.tree)).run()
    assert cluster.submitit.submitted == []


def test_a_large_study_is_submitted_in_arrays_that_wait_for_each_other(cluster: Cluster) -> None:
    cluster.slurm.configure("MaxArraySize = 3\n")
    cluster.batch(plan_of(cluster.tree), wait=False, max_parallel=2).run()
    assert [len(tasks) for tasks in cluster.submitit.submitted] == [2, 2]
    assert [asked.get("dependency") for asked in cluster.submitit.parameters] == [None, "afterany:1"]


def test_a_full_queue_gets_what_it_takes_and_the_rest_later(cluster: Cluster) -> None:
    cluster.submitit.largest = 2
    first = cluster.batch(plan_of(cluster.tree), wait=False)
    first.run()
    assert [len(tasks) for tasks in cluster.submitit.submitted] == [2, 2]
    assert len(first.results) == 4


def test_a_queue_that_takes_no_more_is_tried_again(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.slurm.configure("MaxArraySize = 4\n")
    plan = plan_of(cluster.tree)
    batch = cluster.batch(plan)

    class Full(list[Any]):
        def append(self, tasks: Any) -> None:
            super().append(tasks)
            cluster.submitit.largest = 0 if len(self) == 1 else 10

    cluster.submitit.submitted = Full()

    def take_more() -> None:
        cluster.submitit.largest = 10
        cluster.show(*["PENDING"] * 3)

    def train() -> None:
        cluster.slurm.show()
        for artist in EVERYBODY:
            put_adapter(cluster.tree, artist=artist)

    # It tries again after a minute.
    cluster.looks = [take_more, *[lambda: None] * 13, train, lambda: None]
    batch.run()
    assert [len(tasks) for tasks in cluster.submitit.submitted] == [3, 1]
    assert set(words(batch).values()) == {"trained"}
    assert "takes no more jobs for now, and 1 are still to come" in capsys.readouterr().out


def test_a_queue_that_takes_nothing_at_all_is_a_fault(cluster: Cluster) -> None:
    cluster.submitit.largest = 0
    with pytest.raises(BatchFault, match="AssocMaxSubmitJobLimit"):
        cluster.batch(plan_of(cluster.tree)).run()
    assert list(cluster.tree.queue("slurm").glob("mimicry-*")) == []


def test_ends_without_an_adapter_are_told_by_record_tracker_and_slurm(cluster: Cluster) -> None:
    def end() -> None:
        open_tracker(cluster.tree).record(KEYS[0], status="failed", error="it burns")
        put_adapter(cluster.tree, artist=BORIS)
        cluster.show("FAILED", "CANCELLED", "COMPLETED", "OUT_OF_MEMORY")

    cluster.looks = [end, *[lambda: None] * 4]
    batch = cluster.batch(plan_of(cluster.tree))
    batch.run()
    told = {result.target.artist: (result.state, result.error) for result in batch.results}
    assert told[DORA] == (State.FAILED, "it burns")
    assert told[ANNA][0] is State.INTERRUPTED
    assert "job 1_1 was cancelled" in told[ANNA][1]
    assert told[BORIS][0] is State.COMPLETE
    assert told[CLARA][0] is State.FAILED
    assert "out of memory" in told[CLARA][1]
    assert mark_of(cluster.tree, CLARA)["status"] == "failed"


def test_what_an_overwrite_was_to_replace_is_not_taken_for_its_result(cluster: Cluster) -> None:
    put_adapter(cluster.tree, artist=ANNA)
    plan = plan_of(cluster.tree, overwrite=True, artists=(ANNA.name,))
    batch = cluster.batch(plan)
    cluster.looks = [lambda: cluster.show("CANCELLED"), *[lambda: None] * 4]
    batch.run()
    assert words(batch) == {ANNA.name: "interrupted"}
    assert mark_of(cluster.tree, ANNA)["status"] == "complete"


def test_a_requeued_job_is_followed_on(cluster: Cluster) -> None:
    def train() -> None:
        for artist in EVERYBODY:
            put_adapter(cluster.tree, artist=artist)

    cluster.looks = [
        lambda: cluster.show(*["RUNNING"] * 4),
        lambda: cluster.show(*["NODE_FAIL"] * 4),  # for a moment only
        lambda: cluster.show(*["PENDING BeginTime"] * 4),
        train,
        lambda: cluster.slurm.show(),
    ]
    batch = cluster.batch(plan_of(cluster.tree))
    batch.run()
    assert set(words(batch).values()) == {"trained"}


def test_when_nothing_will_start_the_call_says_so_and_ends(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.looks = [lambda: cluster.show(*["PENDING JobHeldAdmin"] * 4), lambda: None]
    batch = cluster.batch(plan_of(cluster.tree))
    batch.run()
    assert set(words(batch).values()) == {"queued"}
    assert "job 1_0 is pending (JobHeldAdmin), and will not start by itself" in capsys.readouterr().out


def test_three_failures_alike_cancel_what_has_not_begun(cluster: Cluster) -> None:
    def burn() -> None:
        for key in KEYS[:3]:
            open_tracker(cluster.tree).record(key, status="failed", error="it burns")
        cluster.show("FAILED", "FAILED", "FAILED", "PENDING Priority")
        (folder,) = cluster.tree.queue("slurm").glob("mimicry-*")
        for number in range(3):  # each has printed something, in a file of its own
            (folder / f"1_{number}_0_log.out").touch()

    cluster.looks = [burn, lambda: cluster.show(*["CANCELLED"] * 4), *[lambda: None] * 4]
    cluster.batch(plan_of(cluster.tree)).run()
    assert cluster.slurm.calls("scancel") == ["--state=PENDING 1_3"]


def test_a_stop_signal_leaves_the_jobs_in_the_queue(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise Interrupted(2)

    cluster.looks = [lambda: cluster.show(*["PENDING"] * 4), stop]
    batch = cluster.batch(plan_of(cluster.tree))
    with pytest.raises(Interrupted):
        batch.run()
    assert set(words(batch).values()) == {"queued"}
    assert cluster.slurm.calls("scancel") == []
    assert "4 stay in the queue" in capsys.readouterr().out
    assert mark_of(cluster.tree)["status"] == "waiting"


def test_a_queue_that_does_not_answer_is_asked_again(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer() -> None:
        (cluster.slurm.folder / "refusal").unlink()
        for artist in EVERYBODY:
            put_adapter(cluster.tree, artist=artist)

    cluster.looks = [lambda: cluster.slurm.refuse("Socket timed out"), lambda: None, answer, lambda: None]
    batch = cluster.batch(plan_of(cluster.tree))
    batch.run()
    assert set(words(batch).values()) == {"trained"}
    assert capsys.readouterr().out.count("Socket timed out") == 1
