"""Several processes that train one adapter together: what they exchange, and how they end together.

Each computes its shard of a step's samples; gradients are summed once for each optimizer step. The model is
not wrapped, so the modulation cache, checkpointing and compiled blocks work as in one process. Only the main
process prints and writes files, and it ends last, so that its records are complete when the launcher looks.

Messages go through gloo on every device: there a dead process breaks the connection, where an NCCL kernel
would wait for it for ever.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from mimicry.common.environment import process_index
from mimicry.common.errors import MimicryError, TrainingFailed, UsageError
from mimicry.common.processes import Interrupted, drop_held_signals, held_signal, stop_signals_held
from mimicry.common.text import printable

Value = TypeVar("Value")

# A process may wait long for another that encodes, evaluates or saves; the stall guard ends what hangs.
_TIMEOUT = timedelta(days=7)
GROUP_OPTIONS = InitProcessGroupKwargs(timeout=_TIMEOUT)
# How long the others wait for the main process to write its records.
_RECORDS_TIMEOUT = timedelta(seconds=60)
_DONE = "mimicry/done"


def say(text: str) -> None:
    """Print a line for people at once, in the main process; under the wrapper it goes to train.log."""
    # A full disk, or a reader that has closed the pipe, must not end a training.
    if process_index() == 0:
        with suppress(OSError):
            print(printable(text), flush=True)


class Processes:
    """The processes of one training, as seen by one of them. A lone process never waits."""

    def __init__(self, count: int = 1, index: int = 0, group: Any = None) -> None:
        self.count = count
        self.index = index
        self._group = group
        # All processes know how this training ends, the main one too.
        self._end_is_common = False

    @classmethod
    def from_accelerator(cls, accelerator: Accelerator) -> "Processes":
        count = int(accelerator.num_processes)
        if count == 1:
            return cls()
        group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if dist.get_backend() != "gloo" else None
        return cls(count, int(accelerator.process_index), group)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Run the body in each process; if it fails in one, it fails in all, and the main one reports it.

        Raises:
            MimicryError: in the main process, that of the first one that failed, or a TrainingFailed.
            SystemExit: in the others.
        """
        if self.count == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        facts = None if failure is None else (_problems(failure), getattr(failure, "exit_code", 1))
        found = [(index, facts) for index, facts in enumerate(self._gather(facts)) if facts is not None]
        if not found:
            return
        index, (problems, code) = found[0]
        if not self.is_main:
            raise SystemExit(code) from failure
        if failure is not None:
            raise failure
        kind = UsageError if code == UsageError.exit_code else TrainingFailed
        raise kind(*(self._named(index, problem) for problem in problems))

    def broadcast_from_main(self, decide: Callable[[], Value]) -> Value:
        """Return what `decide` returns in the main process; if it fails there, all processes end."""
        if self.count == 1:
            return decide()
        words: list[Any] = [None]
        if not self.is_main:
            self._exchange(lambda: dist.broadcast_object_list(words, src=0, group=self._group))
            code, value = words[0]
            if code is not None:
                raise SystemExit(code)
            return value  # type: ignore[no-any-return]
        words = [(1, None)]
        try:
            decided = decide()
            words = [(None, decided)]
        except MimicryError as error:
            words = [(error.exit_code, None)]
            raise
        finally:
            self._exchange(lambda: dist.broadcast_object_list(words, src=0, group=self._group))
        return decided

    @contextmanager
    def guarded(self, recorded: AbstractContextManager[None]) -> Iterator[None]:
        """Run a training within `recorded`; all processes end together, the main one by TrainingFailed."""
        if self.count == 1:
            with recorded:
                yield
            return
        try:
            with recorded, self._posting_end():
                yield
            self._end_is_common = True
        finally:
            with suppress(RuntimeError):
                if self.is_main:
                    _get_default_store().set(_DONE, "")
                elif self._end_is_common:
                    _get_default_store().wait([_DONE], _RECORDS_TIMEOUT)

    def deferring_stops(self) -> AbstractContextManager[None]:
        """Return a context in which stop signals wait for `barrier_gather`; not in a lone process."""
        return nullcontext() if self.count == 1 else stop_signals_held()

    @property
    def stop_asked(self) -> bool:
        """Whether a stop signal waits: this process should reach the next `barrier_gather` soon."""
        return self.count > 1 and held_signal() is not None

    def barrier_gather(self, word: Value) -> list[Value]:
        """Wait for all processes, and return what each has brought, in their order.

        Raises:
            Interrupted: one of them received a stop signal; it is raised in all.
            TrainingFailed: one has died.
        """
        if self.count == 1:
            return [word]
        found = self._gather((held_signal(), word))
        signals = [number for number, _ in found if number is not None]
        if signals:
            self._end_is_common = True
            drop_held_signals()
            raise Interrupted(signals[0])
        return [word for _, word in found]

    def shard(self, items: Sequence[Value]) -> list[Value | None]:
        """Return this process's shard of `items`, padded with None so that all have the same length."""
        part: list[Value | None] = list(items[self.index :: self.count])
        return part + [None] * (-(-len(items) // self.count) - len(part))

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors`, in fp32, by its sum over all processes; all get the same bits."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._exchange(lambda: dist.all_reduce(flat))
        totals = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view_as(tensor))

    def common_error(self, error: MimicryError) -> MimicryError | SystemExit:
        """Return what to raise for an error that all processes find together: the main one reports it."""
        self._end_is_common = True
        return error if self.is_main else SystemExit(error.exit_code)

    @contextmanager
    def _posting_end(self) -> Iterator[None]:
        """Post how this process ends; in the main one, report what the others have posted."""
        try:
            yield
        except Interrupted as stop:
            failure = self._posted_ends()[0] if self.is_main else None
            if failure is not None:
                raise TrainingFailed(failure) from stop
            self._post_end({"signal": stop.number})
            raise
        except Exception as error:
            self._post_end({"problems": _problems(error)})
            if self.is_main or not isinstance(error, MimicryError):
                raise
            raise SystemExit(error.exit_code) from error

    def _post_end(self, word: dict[str, Any]) -> None:
        # The store is gone when the process that kept it has ended.
        with suppress(RuntimeError):
            _get_default_store().set(f"mimicry/end/{self.index}", json.dumps(word))
        if not self.is_main and "problems" in word and not self._end_is_common:
            # The main process reports it too, if it still can.
            for problem in word["problems"]:
                print(f"error: {self._named(self.index, problem)}", file=sys.stderr)

    def _posted_ends(self) -> tuple[str | None, int | None]:
        """Return why another process failed, and the signal that stopped another one."""
        failure, number = None, None
        for index in range(self.count):
            key = f"mimicry/end/{index}"
            with suppress(RuntimeError):
                if index == self.index or not _get_default_store().check([key]):
                    continue
                word = json.loads(_get_default_store().get(key))
                failure = failure or "\n".join(self._named(index, text) for text in word.get("problems", []))
                number = number or word.get("signal")
        return failure or None, number

    def _exchange(self, speak: Callable[[], Any]) -> None:
        try:
            speak()
        except RuntimeError as error:
            # Not part of the error, which is recorded: it names ports.
            print(f"process {self.index}: {error}", file=sys.stderr)
            failure, number = self._posted_ends()
            # The launcher then stops the remaining processes by a signal, which is not the reason.
            drop_held_signals()
            if failure is None and number is not None:
                raise Interrupted(number) from error
            raise TrainingFailed(
                failure
                or f"another of the {self.count} processes is gone without a word: it was killed, by hand or "
                f"for want of memory"
            ) from error

    def _gather(self, word: Value) -> list[Value]:
        found: list[Any] = [None] * self.count
        self._exchange(lambda: dist.all_gather_object(found, word, group=self._group))
        return found

    def _named(self, index: int, problem: str) -> str:
        return f"process {index} of {self.count}: {problem}"


def _problems(error: Exception) -> list[str]:
    if isinstance(error, MimicryError):
        return list(error.problems)
    return [f"{type(error).__name__}: {error}".strip()]
