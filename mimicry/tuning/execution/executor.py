"""Where and how targets are trained: what every executor offers to the batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mimicry.study import State
from mimicry.tuning.adapters import AdapterState
from mimicry.tuning.planning import Target

# Says, once the folder is claimed, what another call has made of it; None: it is still to be trained.
Recheck = Callable[[Target], AdapterState | None]


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended.

    `state` is how the adapter is, `error` why it is not complete. `where` is the place that it was trained
    in, as the watcher was told. `steps` are those that the training took,
    `code` is its exit code, `log_lines` are the last lines of what it printed, `warnings` are those that its
    record tells of. With `elsewhere` there was nothing to do: another call has done it.
    """

    state: State
    error: str = ""
    elsewhere: bool = False
    where: str = ""
    steps: int = 0
    code: int = 0
    log_lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Watcher(Protocol):
    """Is told how a training goes."""

    def begun(self, where: str) -> None:
        """Take that the training begins, and where, in words; empty where there is one place only."""

    def phase(self, text: str) -> None:
        """Take the last line that was logged before the first step."""

    def step(self, line: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl."""


class Job(Protocol):
    """One target in training."""

    target: Target

    def poll(self) -> JobEnd | None:
        """Tell the watcher what is new; return how the job ended, or None while it runs. Does not wait."""

    def ask_to_stop(self, number: int) -> None:
        """Send the job this signal, and return at once. Asked again, it hurries."""

    def cancel(self, number: int) -> None:
        """Stop the job with this signal, unless it was asked to, and wait until nothing of it is left.

        Raises:
            Interrupted: a stop signal came meanwhile; nothing of the job is left all the same.
        """


class Executor(Protocol):
    """Trains targets. The worker that trains holds the claim to the adapter's folder."""

    @property
    def capacity(self) -> int:
        """How many jobs it runs at a time, at most."""

    @property
    def is_full(self) -> bool:
        """Whether it runs so many jobs already."""

    def obstacle(self, target: Target) -> str:
        """Return why `target` has to wait although the executor is not full; empty when it need not.

        It never has to while no job runs.
        """

    def leave(self, where: str) -> bool:
        """Begin no more jobs in this place; False, and nothing changes, where there is no other."""

    def submit(self, target: Target, watcher: Watcher, recheck: Recheck) -> Job:
        """Begin to train `target`, unless another call has done so since it was planned.

        Raises:
            ClaimedElsewhere: another call works on it.
        """
