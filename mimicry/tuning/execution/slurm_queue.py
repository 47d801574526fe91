"""What a Slurm cluster has in its queue for a study.

Each submission has a folder below `progress/slurm/`, whose name is the name of its jobs:

    progress/slurm/mimicry-1f0c2a9b/cells.json    {"submitted_at", "cells": {key: recipe}}

It is written before the jobs are submitted, and the job with index N of an array is for cell N. So every job
is known by its name, whatever ended the call that submitted it. Keys are those of the tracker. A recipe is a
hash, or null for a stack without options.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.errors import MimicryError
from mimicry.common.files import read_json, utc_now, write_json
from mimicry.study import StudyTree

CELLS = "cells.json"
JOB_NAME = "mimicry-"
# Older submissions have left the queue.
_MOST_SUBMISSIONS = 200
_SQUEUE_SECONDS = 120
_FIELDS = "%j|%F|%K|%T|%N|%r"
# A job in one of these has ended; all others may still train.
_ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
# Why a job waits that will not begin unless somebody does something about it.
_STUCK = (
    *("JobHeld", "launch failed", "BadConstraints", "DependencyNeverSatisfied", "Invalid", "NotAllowed"),
    *("PartitionNodeLimit", "PartitionTimeLimit", "PartitionDown", "PartitionInactive", "AccountNot"),
)


class QueueUnknown(MimicryError):
    """Slurm does not say what is in its queue; it may do so later."""


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job for a cell, as squeue shows it: `state` and `reason` are Slurm's words.

    `recipe` is the hash of the recipe that it was submitted with.
    """

    name: str
    id: str
    state: str
    node: str = ""
    reason: str = ""
    recipe: str | None = None

    @property
    def is_live(self) -> bool:
        return self.state not in _ENDED

    @property
    def runs(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")

    @property
    def is_stuck(self) -> bool:
        """Whether it will not start by itself."""
        return self.state == "PENDING" and any(word.lower() in self.reason.lower() for word in _STUCK)

    def log(self, tree: StudyTree) -> Path:
        """Return the file that the job prints into."""
        return tree.slurm / self.name / f"{self.id}_0_log.out"

    def __str__(self) -> str:
        words = f"job {self.id} is {self.state.lower().replace('_', ' ')}"
        if self.runs and self.node:
            return f"{words} on {self.node}"
        return f"{words} ({self.reason})" if self.reason not in ("", "None") else words


def new_submission(tree: StudyTree, name: str, recipes: Mapping[str, str | None]) -> Path:
    """Note that jobs with this name will be submitted; return the folder of their files.

    Args:
        recipes: the hash of the recipe of each cell, by key, in the order of the jobs.

    Raises:
        MimicryError: it cannot be written.
    """
    folder = tree.slurm / name
    try:
        # Submitit keeps pickles there, and who could write them could run programs as this user.
        folder.mkdir(mode=0o700, parents=True)
        write_json(folder / CELLS, {"submitted_at": utc_now(), "cells": recipes})
    except OSError as error:
        raise MimicryError(
            f"{folder} cannot be written: {error.strerror}; make room or get write permission"
        ) from error
    return folder


def forget_submission(folder: Path) -> None:
    """Take back `new_submission`, after Slurm has refused the jobs."""
    shutil.rmtree(folder, ignore_errors=True)


def jobs_of_study(tree: StudyTree) -> dict[str, QueuedJob]:
    """Return the jobs for cells of the study that Slurm knows, by key.

    Jobs that have ended are among them for as long as Slurm shows them. Of several for a cell it is the one
    that is live, or else the last.

    Raises:
        QueueUnknown: Slurm does not answer.
    """
    submissions = _submissions(tree)
    if not submissions:
        return {}
    found: dict[str, QueuedJob] = {}
    order = {name: number for number, name in enumerate(submissions)}
    rows = sorted(_squeue(list(submissions)), key=lambda row: order.get(row[0].name, -1))
    for job, index in rows:
        cells = submissions.get(job.name, [])
        if index >= len(cells):
            continue
        key, recipe = cells[index]
        former = found.get(key)
        if former is None or job.is_live or not former.is_live:
            found[key] = replace(job, recipe=recipe)
    return found


def live_jobs(tree: StudyTree) -> dict[str, QueuedJob]:
    """Return the jobs of the study that have not ended; see `jobs_of_study`."""
    return {key: job for key, job in jobs_of_study(tree).items() if job.is_live}


def cancel_jobs(ids: Sequence[str], *, pending_only: bool) -> None:
    """Cancel jobs, or those of them that have not begun."""
    if ids:
        state = ["--state=PENDING"] if pending_only else []
        subprocess.run(["scancel", *state, *ids], check=False, timeout=_SQUEUE_SECONDS)


def _submissions(tree: StudyTree) -> dict[str, list[tuple[str, str | None]]]:
    """Return the cells of the newest submissions by the name of their jobs, the oldest first."""
    found: list[tuple[str, str, list[tuple[str, str | None]]]] = []
    for path in tree.slurm.glob(f"{JOB_NAME}*/{CELLS}"):
        try:
            content: Any = read_json(path)
            cells = list(content["cells"].items())
            found.append((str(content["submitted_at"]), path.parent.name, cells))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # torn by a crash of the machine: without it the jobs run all the same
    found.sort(key=lambda one: one[:2])
    return {name: cells for _, name, cells in found[-_MOST_SUBMISSIONS:]}


def _squeue(names: Sequence[str]) -> list[tuple[QueuedJob, int]]:
    """Return the jobs of these names, each with its index in its array."""
    words = ["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(names)}"]
    try:
        shown = subprocess.run(
            [*words, f"--format={_FIELDS}"], capture_output=True, text=True, timeout=_SQUEUE_SECONDS
        )
    except FileNotFoundError as error:
        raise QueueUnknown(
            "there is no squeue on this machine; type the command on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnknown(f"squeue has not answered within {_SQUEUE_SECONDS} s") from error
    if shown.returncode != 0:
        raise QueueUnknown(f"squeue failed: {shown.stderr.strip() or shown.returncode}")
    return [row for line in shown.stdout.splitlines() if (row := _row(line)) is not None]


def _row(line: str) -> tuple[QueuedJob, int] | None:
    name, number, index, state, node, reason = (line.strip().split("|", 5) + [""] * 6)[:6]
    if not name.startswith(JOB_NAME):
        return None
    is_array = index.isdigit()
    job_id = f"{number}_{index}" if is_array else number
    job = QueuedJob(name=name, id=job_id, state=state, node=node, reason=reason)
    return job, int(index) if is_array else 0
