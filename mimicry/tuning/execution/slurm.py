"""Slurm as an executor: jobs are submitted through submitit, listed by squeue, and cancelled by scancel.

Each submission has a folder below `progress/slurm/`, whose name is the name of its jobs:

    progress/slurm/mimicry-1f0c2a9b/cells.json    {"submitted_at", "cells": {key: recipe}}

It is written before the jobs are submitted, and the job with index N of an array is for cell N. So every job
is known by its name, whatever ended the call that submitted it. Keys are those of the tracker. A recipe is a
hash, or null for a stack without options.
"""

import importlib
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mimicry.common.errors import BatchFault, MimicryError
from mimicry.common.files import read_json, utc_now, write_json
from mimicry.study import State, StudyTree
from mimicry.tuning.adapters.inspect import QueuedJob
from mimicry.tuning.execution.bookkeeping import KEPT
from mimicry.tuning.execution.cluster import (
    ClusterExecutor,
    QueueFull,
    QueueUnknown,
    SubmissionUnknown,
    worker_words,
)
from mimicry.tuning.execution.slurm_task import IGNORING, SlurmTask
from mimicry.tuning.options.slurm_options import SIGNAL_SECONDS, SLURM, SlurmSettings
from mimicry.tuning.planning import Plan, Target, training_of

CELLS = "cells.json"
JOB_NAME = "mimicry-"
# A training that has taken steps is put back as often as it takes; see `SlurmTask.checkpoint`.
_MOST_TIMEOUTS = 100_000
_DEFAULT_ARRAY = 1000
# Older submissions have left the queue.
_MOST_SUBMISSIONS = 200
_PROGRAM_SECONDS = 120
_FIELDS = "%j|%F|%K|%T|%N|%r"
# How sbatch says that it would take fewer jobs, or the same ones later.
_FULL = (
    *("maxsubmit", "submit limit", "grpsubmit", "temporarily unable", "queue is full", "try again"),
    *("resource temporarily unavailable", "arraytask", "invalid job array specification"),
)
# The jobs may have been submitted all the same.
_UNKNOWN = ("socket timed out", "unable to contact", "communication", "zero bytes")
# A job in one of these has ended; all others may still train.
_ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
_RUNS = ("RUNNING", "COMPLETING", "STOPPED", "SUSPENDED")
# Why a job waits that will not begin unless somebody does something about it.
_STUCK = (
    *("JobHeld", "launch failed", "BadConstraints", "DependencyNeverSatisfied", "Invalid", "NotAllowed"),
    *("PartitionNodeLimit", "PartitionTimeLimit", "PartitionDown", "PartitionInactive", "AccountNot"),
)


class SlurmExecutor(ClusterExecutor):
    """A Slurm cluster, with what each job asks it for."""

    name = SLURM

    def __init__(self, settings: SlurmSettings) -> None:
        super().__init__(settings.max_parallel)
        self._settings = settings

    def largest_array(self) -> int:
        """Return how many jobs an array of this cluster may have."""
        try:
            shown = _run(["scontrol", "show", "config"]).stdout
        except (OSError, subprocess.TimeoutExpired):
            return _DEFAULT_ARRAY
        for line in shown.splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize" and value.strip().isdigit():
                return max(1, int(value) - 1)
        return _DEFAULT_ARRAY

    def submit_array(self, targets: Sequence[Target], *, after: str = "") -> str:
        """Submit a job for each target; see `ClusterExecutor.submit_array`."""
        submitit = _submitit()
        name = f"{JOB_NAME}{secrets.token_hex(4)}"
        tree = targets[0].request.tree
        recipes = {target.adapter.key: target.request.spec.recipe_hash for target in targets}
        folder = new_submission(tree, name, recipes)
        tasks = [_task(target, self._settings.python) for target in targets]
        try:
            executor = self._submitter(submitit, folder, name, targets[0], after)
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
        except submitit.core.utils.FailedJobError as error:
            words = str(error).strip()
            if any(word in words.lower() for word in _UNKNOWN):
                raise SubmissionUnknown(f"sbatch: {words}") from error
            forget_submission(folder)
            if any(word in words.lower() for word in _FULL):
                raise QueueFull(f"sbatch: {words}") from error
            raise BatchFault(_refused(words)) from error
        except (RuntimeError, ValueError, OSError) as error:
            forget_submission(folder)
            raise BatchFault(f"--engine slurm: {error}") from error
        return str(jobs[0].job_id).partition("_")[0]

    def describe(self, plan: Plan) -> str:
        """Return the script that sbatch would be given for what is to be trained; empty for nothing.

        Raises:
            BatchFault: submitit is missing, or this machine has no Slurm.
        """
        targets = plan.of(State.WAITING)
        if not targets:
            return ""
        submitit = _submitit()
        name = f"{JOB_NAME}NAME"
        try:
            executor = self._submitter(
                submitit, plan.call.tree.queue(SLURM).absolute() / name, name, targets[0], ""
            )
        except (RuntimeError, ValueError) as error:
            raise BatchFault(f"--engine slurm: {error}") from error
        if len(targets) > 1:
            executor.parameters["map_count"] = len(targets)
        # Submitit has no public name for this.
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "uid")
        return text.rstrip("\n") + "\n"

    def queued(self, tree: StudyTree) -> Mapping[str, QueuedJob]:
        """See `jobs_of_study`."""
        return jobs_of_study(tree)

    def cancel_waiting(self, jobs: Sequence[QueuedJob]) -> None:
        """Cancel those that have not begun."""
        if jobs:
            _run(["scancel", "--state=PENDING", *(job.id for job in jobs)])

    def how_to_cancel(self, jobs: Sequence[QueuedJob]) -> str:
        """Return the command that ends these jobs."""
        return f"scancel --name={','.join(sorted({job.name for job in jobs}))}"

    def _submitter(
        self, submitit: ModuleType, folder: Path, name: str, target: Target, after: str
    ) -> Any:  # of submitit, which has no types for its parameters
        settings = self._settings
        # A preemption may signal a job that has just begun. Python would end of it before submitit takes the
        # signal, and Slurm would call the job failed instead of putting it back into the queue.
        python = shlex.join([*IGNORING, settings.python])
        executor = submitit.SlurmExecutor(
            folder=folder.absolute(), max_num_timeout=_MOST_TIMEOUTS, python=python
        )
        gres = settings.gres_for(target.request.config.num_processes)
        given = {
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "gres": gres,
            "dependency": f"afterany:{after}" if after else None,
            "setup": list(settings.setup) or None,
        }
        # Memory is always asked for: without it a job may get that of a whole node, or next to none.
        executor.update_parameters(
            job_name=name,
            time=settings.minutes,
            cpus_per_task=settings.cpus,
            mem=settings.memory,
            signal_delay_s=SIGNAL_SECONDS,
            array_parallelism=settings.max_parallel or _DEFAULT_ARRAY**2,
            stderr_to_stdout=True,
            wckey=None,
            additional_parameters={"requeue": True, **dict(settings.extra)},
            **{key: value for key, value in given.items() if value is not None},
        )
        return executor


def new_submission(tree: StudyTree, name: str, recipes: Mapping[str, str | None]) -> Path:
    """Note that jobs with this name will be submitted; return the folder of their files.

    Args:
        recipes: the hash of the recipe of each cell, by key, in the order of the jobs.

    Raises:
        MimicryError: it cannot be written.
    """
    folder = tree.queue(SLURM) / name
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


def _task(target: Target, python: str) -> SlurmTask:
    replaces = None
    if target.request.overwrite and target.existing in KEPT:
        replaces = training_of(target.folder)
    return SlurmTask(worker_words(target, python), target.folder.path.absolute(), replaces)


def _submitit() -> ModuleType:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise BatchFault(
            "--engine slurm needs submitit, which is not installed; type pip install submitit, or leave "
            "--engine slurm out to train on this machine"
        ) from error


def _refused(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if "sbatch: error" in line] or [words]
    return (
        f"Slurm refuses the jobs: {'; '.join(lines)}; look at `sinfo` and `sacctmgr show assoc`, and at "
        f"--slurm-partition, --slurm-account, --slurm-qos, --slurm-gres, --slurm-mem, --slurm-cpus and "
        f"--slurm-time"
    )


def _submissions(tree: StudyTree) -> dict[str, list[tuple[str, str | None]]]:
    found: list[tuple[str, str, list[tuple[str, str | None]]]] = []
    for path in tree.queue(SLURM).glob(f"{JOB_NAME}*/{CELLS}"):
        try:
            content: Any = read_json(path)
            cells = list(content["cells"].items())
            found.append((str(content["submitted_at"]), path.parent.name, cells))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # torn by a crash of the machine: without it the jobs run all the same
    found.sort(key=lambda one: one[:2])
    return {name: cells for _, name, cells in found[-_MOST_SUBMISSIONS:]}


def _squeue(names: Sequence[str]) -> list[tuple[QueuedJob, int]]:
    words = ["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(names)}"]
    try:
        shown = _run([*words, f"--format={_FIELDS}"])
    except FileNotFoundError as error:
        raise QueueUnknown(
            "there is no squeue on this machine; type the command on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise QueueUnknown(f"squeue has not answered within {_PROGRAM_SECONDS} s") from error
    if shown.returncode != 0:
        raise QueueUnknown(f"squeue failed: {shown.stderr.strip() or shown.returncode}")
    return [row for line in shown.stdout.splitlines() if (row := _row(line)) is not None]


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # In a session of its own a Ctrl-C does not reach it.
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=_PROGRAM_SECONDS, start_new_session=True
    )


def _row(line: str) -> tuple[QueuedJob, int] | None:
    name, number, index, state, node, reason = (line.strip().split("|", 5) + [""] * 6)[:6]
    if not name.startswith(JOB_NAME):
        return None
    is_array = index.isdigit()
    job_id = f"{number}_{index}" if is_array else number
    cancel = f"scancel {job_id}"
    job = QueuedJob(
        engine=SLURM,
        name=name,
        id=job_id,
        state=state.lower().replace("_", " "),
        reason="" if reason == "None" else reason,
        node=node,
        is_live=state not in _ENDED,
        runs=state in _RUNS,
        is_stuck=state == "PENDING" and any(word.lower() in reason.lower() for word in _STUCK),
        was_cancelled=state == "CANCELLED",
        how_to_cancel=cancel,
        remedy=f"see `scontrol show job {job_id}`, then `scontrol release {job_id}` or `{cancel}`",
        output=f"{name}/{job_id}_0_log.out",
    )
    return job, int(index) if is_array else 0
