"""Preparing what is needed next on other threads, while the device works."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch

from mimicry.tuning.options.config import TuningConfig

Item = TypeVar("Item")

_GPU_WORKERS = 2


def worker_count(config: TuningConfig, device: torch.device) -> int:
    """Return how many threads prepare batches for `device`.

    By default a GPU has two: without them it would wait while a step's samples are drawn. On the CPU they
    would only take turns with the training. Where each batch encodes its images there are none either: the
    VAE on two more threads would take memory that the choice of checkpointed blocks does not count.
    """
    if config.dataloader_num_workers is not None:
        return config.dataloader_num_workers
    return _GPU_WORKERS if device.type == "cuda" and config.cache_latents else 0


class Prefetch(Generic[Item]):
    """Items 0 to `count` - 1, each made by `make(number)`; those after the one asked for are made ahead.

    `make` must be a function of the number alone, so that it does not matter on which thread, when, or in
    which order items are made. With `worker_count` 0 each item is made when it is asked for, by the caller,
    who is in the context `waiting` until the item is there.
    """

    def __init__(
        self,
        make: Callable[[int], Item],
        count: int,
        worker_count: int,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._make = make
        self._count = count
        self._worker_count = worker_count
        self._waiting = waiting
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[int, Future[Item]] = {}

    def get(self, number: int) -> Item:
        """Return item `number`, and have as many following ones made as there are workers.

        Raises:
            Exception: what `make` raised for this item, on whichever thread.
        """
        with self._waiting():
            return self._get(number)

    def _get(self, number: int) -> Item:
        if self._worker_count == 0:
            return self._make(number)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._worker_count, thread_name_prefix="prefetch")
        wanted = range(number, max(number + 1, min(number + 1 + self._worker_count, self._count)))
        # What was made ahead of another place is of no use here.
        self._coming = {other: item for other, item in self._coming.items() if other in wanted}
        for other in wanted:
            if other not in self._coming:
                self._coming[other] = self._pool.submit(self._make, other)
        return self._coming.pop(number).result()

    def close(self) -> None:
        """Make nothing more; returns when the threads have ended."""
        self._coming = {}
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
