"""Several processes that train one adapter together: what they tell each other, and how they end together.

Each computes its share of a step's samples; gradients are added up once for each optimizer step, and then all
take the same step. There is no wrapper around the model: the conditioning table, checkpointing and compiled
blocks stay what they are. The main process alone prints and writes files; it ends last, so that its records
are in order when the launcher looks.

Words go through gloo on every device. There a process that is gone breaks the connection, where a kernel of
NCCL would wait for it for ever.
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

from mimicry.common.children import Interrupted, drop_held_signals, held_signal, stop_signals_held
from mimicry.common.errors import MimicryError, TrainingFailed, UsageError

Value = TypeVar("Value")

# One may wait for another that encodes, evaluates or saves, however long; what hangs is for the stall guard.
_PATIENCE = timedelta(days=7)
GROUP_OPTIONS = InitProcessGroupKwargs(timeout=_PATIENCE)
# How long the others wait for the main process to put its records in order.
_LAST_WORDS = timedelta(seconds=60)
_DONE = "mimicry/done"


class Processes:
    """The processes of one training, as one of them sees them. A lone one waits for nobody."""

    def __init__(self, count: int = 1, index: int = 0, group: Any = None) -> None:
        """See `of`; `group` is torch's group of all processes, for words."""
        self.count = count
        self.index = index
        self._group = group
        # All have agreed on how this training ends, the main process too.
        self._agreed = False

    @classmethod
    def of(cls, accelerator: Accelerator) -> "Processes":
        """Return the processes that `accelerator` has joined."""
        count = int(accelerator.num_processes)
        if count == 1:
            return cls()
        group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.get_backend() != "gloo" else None
        return cls(count, int(accelerator.process_index), group)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Run the body in each process; where it fails in one, it fails in all, and the main one says it all.

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
        """Return what `decide` returns in the main process; where it fails there, all end."""
        if self.count == 1:
            return decide()
        words: list[Any] = [None]
        if not self.is_main:
            self._talk(lambda: dist.broadcast_object_list(words, src=0, group=self._group))
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
            self._talk(lambda: dist.broadcast_object_list(words, src=0, group=self._group))
        return decided

    @contextmanager
    def guarded(self, recorded: AbstractContextManager[None]) -> Iterator[None]:
        """Run the training of this process within `recorded`; however it ends, it ends everywhere.

        Raises:
            TrainingFailed: in the main process, when another one has failed.
        """
        if self.count == 1:
            with recorded:
                yield
            return
        try:
            with recorded, self._speaking_up():
                yield
            self._agreed = True
        finally:
            with suppress(RuntimeError):
                if self.is_main:
                    _get_default_store().set(_DONE, "")
                elif self._agreed:
                    _get_default_store().wait([_DONE], _LAST_WORDS)

    def deferring_stops(self) -> AbstractContextManager[None]:
        """Return a context in which stop signals wait for `barrier_gather`; not in a lone process."""
        return nullcontext() if self.count == 1 else stop_signals_held()

    @property
    def stop_asked(self) -> bool:
        """Whether a stop signal waits: the sooner this process comes to meet the others the better."""
        return self.count > 1 and held_signal() is not None

    def barrier_gather(self, word: Value) -> list[Value]:
        """Wait for all processes and return their words, in their order.

        Raises:
            Interrupted: a stop signal has come to one of them; it is raised in all.
            TrainingFailed: one is gone.
        """
        if self.count == 1:
            return [word]
        found = self._gather((held_signal(), word))
        signals = [number for number, _ in found if number is not None]
        if signals:
            self._agreed = True
            drop_held_signals()
            raise Interrupted(signals[0])
        return [word for _, word in found]

    def shard(self, items: Sequence[Value]) -> list[Value | None]:
        """Return this process's part of `items`; None fills it up, so that all have as many."""
        part: list[Value | None] = list(items[self.index :: self.count])
        return part + [None] * (-(-len(items) // self.count) - len(part))

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors`, in fp32, by its sum over all processes: the same bits in each."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._talk(lambda: dist.all_reduce(flat))
        totals = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view_as(tensor))

    def agreed(self, error: MimicryError) -> MimicryError | SystemExit:
        """Return what to raise for an error that all processes find alike: the main one says it."""
        self._agreed = True
        return error if self.is_main else SystemExit(error.exit_code)

    @contextmanager
    def _speaking_up(self) -> Iterator[None]:
        """Leave word of how this process ends; in the main one, say what the others have left."""
        try:
            yield
        except Interrupted as stop:
            failure = self._end_of_others()[0] if self.is_main else None
            if failure is not None:
                raise TrainingFailed(failure) from stop
            self._leave_word({"signal": stop.number})
            raise
        except Exception as error:
            self._leave_word({"problems": _problems(error)})
            if self.is_main or not isinstance(error, MimicryError):
                raise
            raise SystemExit(error.exit_code) from error

    def _leave_word(self, word: dict[str, Any]) -> None:
        # The store may be gone with the process that kept it.
        with suppress(RuntimeError):
            _get_default_store().set(f"mimicry/end/{self.index}", json.dumps(word))
        if not self.is_main and "problems" in word and not self._agreed:
            # The main process says it too, if it still can.
            for problem in word["problems"]:
                print(f"error: {self._named(self.index, problem)}", file=sys.stderr)

    def _end_of_others(self) -> tuple[str | None, int | None]:
        """Return why another process has failed, if one said so, and the signal that stopped another one."""
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

    def _talk(self, speak: Callable[[], Any]) -> None:
        """Let torch exchange something.

        Raises:
            TrainingFailed: another process is gone, with what it said before.
            Interrupted: another one has been stopped.
        """
        try:
            speak()
        except RuntimeError as error:
            # Not for the record: it names ports.
            print(f"process {self.index}: {error}", file=sys.stderr)
            failure, number = self._end_of_others()
            # The launcher sends a stop signal to those that are left: it is no reason.
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
        self._talk(lambda: dist.all_gather_object(found, word, group=self._group))
        return found

    def _named(self, index: int, problem: str) -> str:
        return f"process {index} of {self.count}: {problem}"


def _problems(error: Exception) -> list[str]:
    if isinstance(error, MimicryError):
        return list(error.problems)
    return [f"{type(error).__name__}: {error}".strip()]
