"""Batches whose trainings are staged by a fake executor."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mimicry.common.errors import TrainingFailed
from mimicry.common.processes import Interrupted
from mimicry.study.tree import Artist, State, StudyTree
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.local import LocalExecutor, Place
from mimicry.tuning.planning.display import BatchDisplay
from mimicry.tuning.planning.plan import Plan
from mimicry.tuning.planning.target import Target
from tests.small_study import ANNA, EVERYBODY, ORIGINAL, bookmarks_in, output_dir, write_adapter

OnStep = Callable[[dict[str, Any]], None]
# Returns the exit code, or None as long as the training goes on.
Ending = Callable[[Target, OnStep], int | None]


def succeed(target: Target, on_step: OnStep) -> int:
    for step in (1, 2):
        on_step({"step": step, "loss": 0.5})
    write_adapter(target.folder.path, target.images.path)
    return 0


def fail(message: str) -> Ending:
    """Take a step, say `message` in the log, and leave no adapter."""

    def ending(target: Target, on_step: OnStep) -> int:
        on_step({"step": 1, "loss": 0.5})
        with (target.folder.log).open("a") as log:
            log.write(f"reading\nerror: {message}\n")
        return 1

    return ending


def stall(target: Target, on_step: OnStep) -> int:
    raise TrainingFailed("no step for 30 minutes")


def be_stopped(target: Target, on_step: OnStep) -> int:
    on_step({"step": 7, "loss": 0.5})
    raise Interrupted(15)


def leave_broken(target: Target, on_step: OnStep) -> int:
    (target.folder.weights).write_bytes(b"torn")
    return 0


def owe_upload(target: Target, on_step: OnStep) -> int:
    hub = {"owed": "sd35-lora-x", "error": "the Hub is away"}
    write_adapter(target.folder.path, target.images.path, hub=hub)
    return 1


@dataclass
class StagedExecutor(LocalExecutor):
    """Ends each training as `endings` says by artist, else well.

    It notes the order with the bookmarks before and the visible GPUs, and the stop signals.
    """

    tree: StudyTree
    endings: dict[Artist, Ending] = field(default_factory=dict)
    trained: list[Artist] = field(default_factory=list)
    bookmarks_before: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    gpus: list[str | None] = field(default_factory=list)
    signals: list[tuple[Artist, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = self._stage

    @contextmanager
    def _stage(self, target: Target, log: IO[bytes], environment: Mapping[str, str]) -> Iterator[Any]:
        self.trained.append(target.artist)
        self.gpus.append(environment.get("CUDA_VISIBLE_DEVICES"))
        self.bookmarks_before.append(bookmarks_in(self.tree))
        yield StagedChild(target, self.endings.get(target.artist, succeed), self.signals)


@dataclass
class StagedChild:
    """Stands in for a child process: its training takes place when it is waited for, mostly at once."""

    target: Target
    ending: Ending
    signals: list[tuple[Artist, int]] = field(default_factory=list)

    def wait(self, timeout_seconds: float) -> int | None:
        def on_step(line: dict[str, Any]) -> None:
            with self.target.folder.metrics.open("a") as metrics:
                metrics.write(json.dumps(line) + "\n")

        return self.ending(self.target, on_step)

    def ask_to_stop(self, number: int, grace_seconds: float) -> None:
        self.signals.append((self.target.artist, number))

    def has_stopped(self) -> bool:
        return True

    def stop(self, number: int, grace_seconds: float) -> None:
        """There is nothing to stop."""


def make_batch(
    plan: Plan,
    endings: dict[Artist, Ending] | None = None,
    *,
    wait: bool = True,
    places: Sequence[Place] = (Place(),),
) -> tuple[Batch, StagedExecutor]:
    tree = plan.call.tree
    executor = StagedExecutor(tree=tree, endings=endings or {}, places=places)
    batch = Batch(
        plan=plan,
        executor=executor,
        tracker=open_tracker(tree),
        display=BatchDisplay([2] * len(plan.of(State.WAITING))),
        wait=wait,
    )
    return batch, executor


def statuses(tree: StudyTree) -> list[str]:
    """Return the status of each artist's bookmark for the original art, in the order of a plan."""
    marks = bookmarks_in(tree)
    return [str(marks[f"none/none/{artist}"]["status"]) for artist in EVERYBODY]


def mark_of(tree: StudyTree, artist: Artist = ANNA) -> dict[str, Any]:
    return bookmarks_in(tree)[f"none/none/{artist}"]


def output(tree: StudyTree, artist: Artist = ANNA) -> Path:
    return output_dir(tree, ORIGINAL, artist)


def outcomes(batch: Batch) -> list[str]:
    return [result.word for result in batch.results]
