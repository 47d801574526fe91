"""What --engine chooses from, and what all queues together hold."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters.inspect import QueuedJob
from mimicry.tuning.execution import engines
from mimicry.tuning.execution.cluster import QueueUnknown
from mimicry.tuning.execution.slurm import jobs_of_study
from tests.tuning.fake_slurm import FakeSlurm, put_submission


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "bin", monkeypatch)


def test_each_queue_is_asked_and_one_that_does_not_answer_hides_no_other(
    tree: StudyTree, monkeypatch: pytest.MonkeyPatch, fake_slurm: FakeSlurm
) -> None:
    name = put_submission(tree, ["a", "b"])
    fake_slurm.show(f"{name}|7|0|RUNNING|n1|None", f"{name}|7|1|COMPLETED|n1|None")
    (seen,) = (job for key, job in jobs_of_study(tree).items() if key == "a")

    def silent(_: StudyTree) -> Mapping[str, QueuedJob]:
        raise QueueUnknown("kubectl has not answered")

    others = (
        replace(engines.ENGINES[0], name="silent", queued=silent),
        replace(engines.ENGINES[0], name="another", queued=lambda _: {"c": seen}),
    )
    monkeypatch.setattr(engines, "ENGINES", (*engines.ENGINES, *others))

    jobs, faults = engines.queued_jobs(tree)

    assert jobs == {"a": seen, "c": seen}
    assert faults == ["kubectl has not answered"]
