from collections.abc import Iterator

import pytest

from benchmarks.worker import OUT_OF_MEMORY, Deadline, TaskFailed, Worker
from tests.benchmarks.tasks import do


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(do)
    yield worker
    worker.close()


def test_tasks_share_a_process(worker: Worker) -> None:
    first, second = (worker.run("tell", 60)[0] for _ in range(2))

    assert first == second
    assert worker.run("tell", 60, fresh=True)[0] != first


def test_an_environment_is_for_one_task(worker: Worker) -> None:
    worker.run("tell", 60)

    assert worker.run("tell", 60, environment={"OF_THE_TASK": "set"})[1] == "set"
    assert worker.run("tell", 60)[1] is None


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ("fail", "ValueError: too bad"),
        ("run out of memory", f"{OUT_OF_MEMORY}: tried to allocate 20 GiB"),
        ("end", "its process ended with code 7"),
    ],
)
def test_the_next_task_is_done_after_one_that_failed(worker: Worker, task: str, why: str) -> None:
    before = worker.run("tell", 60)[0]

    with pytest.raises(TaskFailed) as caught:
        worker.run(task, 60)

    assert str(caught.value) == why
    assert worker.run("tell", 60)[0] != before


def test_a_task_that_hangs_is_ended(worker: Worker) -> None:
    with pytest.raises(TaskFailed, match="more than 1 s"):
        worker.run("hang", 1)
    assert worker.run("tell", 60)


def test_no_task_begins_when_no_time_is_left(worker: Worker) -> None:
    with pytest.raises(TaskFailed, match="no time was left"):
        worker.run("tell", Deadline(0).left())
