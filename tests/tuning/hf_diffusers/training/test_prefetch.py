"""What is made ahead is what would have been made when asked for."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch

from mimicry.tuning.hf_diffusers.training.device import Prefetch, worker_count
from mimicry.tuning.options.config import TuningConfig

DEADLINE_SECONDS = 20


class Maker:
    """Makes the square of a number, and remembers what it was asked for and on which threads."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[str] = set()

    def __call__(self, number: int) -> int:
        self.made.append(number)
        self.threads.add(threading.current_thread().name)
        return number * number


@pytest.fixture
def maker() -> Iterator[Maker]:
    before = threading.active_count()
    yield Maker()
    assert threading.active_count() == before


@pytest.mark.parametrize("worker_count", [0, 1, 2, 5, 50])
def test_items_come_in_the_order_asked_for_and_are_made_once(worker_count: int, maker: Maker) -> None:
    with closing(Prefetch(maker, 20, worker_count)) as prefetch:
        assert [prefetch.get(number) for number in range(20)] == [number * number for number in range(20)]
    assert sorted(maker.made) == list(range(20))


def test_without_workers_the_caller_makes_them(maker: Maker) -> None:
    with closing(Prefetch(maker, 5, 0)) as prefetch:
        prefetch.get(0)
        assert maker.made == [0]
    assert maker.threads == {threading.current_thread().name}


def test_as_many_are_made_ahead_as_there_are_workers() -> None:
    made = {number: threading.Event() for number in range(20)}
    prefetch = Prefetch(lambda number: made[number].set(), 20, 3)
    prefetch.get(4)
    assert all(made[number].wait(DEADLINE_SECONDS) for number in range(4, 8))
    prefetch.close()
    assert not any(made[number].is_set() for number in (*range(4), *range(8, 20)))


def test_they_are_made_at_the_same_time() -> None:
    """Each waits for the other, which one thread alone would never end."""
    meeting = threading.Barrier(2, timeout=DEADLINE_SECONDS)

    def make(number: int) -> int:
        if number in (1, 2):
            meeting.wait()
        return number

    with closing(Prefetch(make, 3, 2)) as prefetch:
        assert [prefetch.get(number) for number in range(3)] == [0, 1, 2]


def test_any_place_may_be_asked_for(maker: Maker) -> None:
    """As after a checkpoint."""
    with closing(Prefetch(maker, 100, 2)) as prefetch:
        assert [prefetch.get(number) for number in (0, 60, 61, 3, 99)] == [0, 3600, 3721, 9, 9801]
    assert max(maker.made) == 99


def test_an_error_comes_with_its_item_and_not_before() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise LookupError("item 2")
        return number

    with closing(Prefetch(make, 4, 2)) as prefetch:
        assert [prefetch.get(number) for number in range(2)] == [0, 1]
        with pytest.raises(LookupError, match="item 2"):
            prefetch.get(2)


@pytest.mark.parametrize("worker_count", [0, 2])
def test_closing_is_no_matter(worker_count: int, maker: Maker) -> None:
    prefetch = Prefetch(maker, 4, worker_count)
    prefetch.close()
    assert prefetch.get(1) == 1
    prefetch.close()
    prefetch.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_caller_waits_in_the_context_that_was_given(workers: int) -> None:
    entered: list[str] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        entered.append("begin")
        yield
        entered.append("end")

    def make(number: int) -> int:
        if workers == 0:
            entered.append("made")
        return number

    with closing(Prefetch(make, 2, workers, waiting)) as prefetch:
        assert [prefetch.get(number) for number in range(2)] == [0, 1]
    assert entered == (["begin", "end"] if workers else ["begin", "made", "end"]) * 2


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", {}, 2),
        ("cuda", {"cache_latents": False}, 0),
        ("cuda", {"dataloader_num_workers": 0}, 0),
        ("cuda", {"dataloader_num_workers": 5, "cache_latents": False}, 5),
        ("cpu", {}, 0),
        ("cpu", {"dataloader_num_workers": 3}, 3),
    ],
)
def test_a_gpu_has_workers_by_default(device: str, options: dict[str, Any], expected: int) -> None:
    assert worker_count(TuningConfig(**options), torch.device(device)) == expected
