"""Batches whose trainings are staged by a fake executor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimicry.common.children import Interrupted
from mimicry.common.claims import Claim
from mimicry.common.errors import TrainingFailed
from mimicry.study.tree import Artist, StudyTree
from mimicry.tuning.adapters.folder import TRAIN_LOG, WEIGHTS
from tests.tuning.lora_files import judge
from mimicry.tuning.execution.batch import Batch, OnStep
from mimicry.tuning.execution.bookmarks import open_tracker
from mimicry.tuning.planning.plan import Action, Plan, Target
from mimicry.tuning.reports.progress import BatchDisplay
from tests.small_study import ANNA, EVERYBODY, ORIGINAL, asked_for, bookmarks_in, write_adapter

Ending = Callable[[Target, OnStep], int]


def succeed(target: Target, on_step: OnStep) -> int:
    for step in (1, 2):
        on_step({"step": step, "loss": 0.5})
    write_adapter(target.output_dir, target.images.path)
    return 0


def fail(message: str) -> Ending:
    """Take a step, say `message` in the log, and leave no adapter."""

    def ending(target: Target, on_step: OnStep) -> int:
        on_step({"step": 1, "loss": 0.5})
        with (target.output_dir / TRAIN_LOG).open("a") as log:
            log.write(f"reading\nerror: {message}\n")
        return 1

    return ending


def stall(target: Target, on_step: OnStep) -> int:
    raise TrainingFailed("no step for 30 minutes")


def be_stopped(target: Target, on_step: OnStep) -> int:
    on_step({"step": 7, "loss": 0.5})
    raise Interrupted(15)


def leave_broken(target: Target, on_step: OnStep) -> int:
    (target.output_dir / WEIGHTS).write_bytes(b"torn")
    return 0


def owe_upload(target: Target, on_step: OnStep) -> int:
    hub = {"owed": "sd35-lora-x", "error": "the Hub is away"}
    write_adapter(target.output_dir, target.images.path, hub=hub)
    return 1


@dataclass
class StagedExecutor:
    """Ends each training as `endings` says by artist, else well; notes the order and the bookmarks before."""

    tree: StudyTree
    endings: dict[Artist, Ending] = field(default_factory=dict)
    trained: list[Artist] = field(default_factory=list)
    bookmarks_before: list[dict[str, dict[str, Any]]] = field(default_factory=list)

    def command(self, target: Target) -> list[str]:
        return ["train", str(target.artist)]

    def train(self, target: Target, on_step: OnStep, claim: Claim) -> int:
        claim.check()
        self.trained.append(target.artist)
        self.bookmarks_before.append(bookmarks_in(self.tree))
        return self.endings.get(target.artist, succeed)(target, on_step)


def make_batch(plan: Plan, endings: dict[Artist, Ending] | None = None) -> tuple[Batch, StagedExecutor]:
    tree = plan.request.tree
    executor = StagedExecutor(tree, endings or {})
    batch = Batch(
        plan=plan,
        executor=executor,
        tracker=open_tracker(tree),
        display=BatchDisplay(len(plan.of(Action.TRAIN)), 2),
        step_count=lambda _: 2,
        judge=lambda target: judge(target.output_dir, asked_for(), target.images, full=True),
    )
    return batch, executor


def statuses(tree: StudyTree) -> list[str]:
    """Return the status of each artist's bookmark for the original art, in the order of a plan."""
    marks = bookmarks_in(tree)
    return [str(marks[f"none/none/{artist}"]["status"]) for artist in EVERYBODY]


def mark_of(tree: StudyTree, artist: Artist = ANNA) -> dict[str, Any]:
    return bookmarks_in(tree)[f"none/none/{artist}"]


def output(tree: StudyTree, artist: Artist = ANNA) -> Path:
    return tree.output_dir("hf_diffusers", ORIGINAL, artist)


def outcomes(batch: Batch) -> list[str]:
    return [result.outcome for result in batch.results]
