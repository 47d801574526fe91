"""Submitting trainings to a Slurm cluster, through submitit: arrays of jobs, one job for each cell."""

import importlib
import secrets
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mimicry.common.errors import BatchFault, MimicryError
from mimicry.study import State, StudyTree
from mimicry.study.tree import NONE
from mimicry.tuning.execution.slurm_queue import JOB_NAME, forget_submission, new_submission
from mimicry.tuning.execution.slurm_task import IGNORING, SlurmTask
from mimicry.tuning.options.click_options import option_words
from mimicry.tuning.options.slurm_options import LOCAL, SIGNAL_SECONDS, SlurmSettings
from mimicry.tuning.planning import Plan, Target
from mimicry.tuning.planning.overwriting import training_of
from mimicry.tuning.stacks import STACKS

# A training that has taken steps is put back as often as it takes; see `SlurmTask.checkpoint`.
_MOST_TIMEOUTS = 100_000
_DEFAULT_ARRAY = 1000
_SCONTROL_SECONDS = 60
# How sbatch says that it would take fewer jobs, or the same ones later.
_FULL = (
    *("maxsubmit", "submit limit", "grpsubmit", "temporarily unable", "queue is full", "try again"),
    *("resource temporarily unavailable", "arraytask", "invalid job array specification"),
)
# The jobs may have been submitted all the same.
_UNKNOWN = ("socket timed out", "unable to contact", "communication", "zero bytes")
# Adapters that are good, and trained again only when that is asked for.
_KEPT = (State.COMPLETE, State.STALE)


class QueueFull(MimicryError):
    """The cluster takes no more jobs for now."""


class SubmissionUnknown(MimicryError):
    """Slurm did not say whether it took the jobs."""


@dataclass(frozen=True)
class SlurmSubmitter:
    """Submits trainings of a study, with what each job asks the cluster for."""

    tree: StudyTree
    settings: SlurmSettings

    def largest_array(self) -> int:
        """Return how many jobs an array of this cluster may have."""
        try:
            shown = subprocess.run(
                ["scontrol", "show", "config"], capture_output=True, text=True, timeout=_SCONTROL_SECONDS
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            return _DEFAULT_ARRAY
        for line in shown.splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize" and value.strip().isdigit():
                return max(1, int(value) - 1)
        return _DEFAULT_ARRAY

    def submit(self, targets: Sequence[Target], *, after: str = "") -> str:
        """Submit a job for each target, as one array, and return its number.

        Args:
            after: the number of an array that has to end first.

        Raises:
            QueueFull: fewer jobs, or the same later, may be taken.
            SubmissionUnknown: Slurm did not answer; what is in its queue tells later.
            BatchFault: Slurm refuses them.
        """
        submitit = _submitit()
        name = f"{JOB_NAME}{secrets.token_hex(4)}"
        recipes = {target.adapter.key: target.request.spec.recipe_hash for target in targets}
        folder = new_submission(self.tree, name, recipes)
        tasks = [_task(target, self.settings.python) for target in targets]
        try:
            executor = self._executor(submitit, folder, name, targets[0], after)
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

    def script(self, plan: Plan) -> str:
        """Return the script that sbatch would be given for what is to be trained; empty for nothing.

        Nothing is written.

        Raises:
            BatchFault: submitit is missing, or this machine has no Slurm.
        """
        targets = plan.of(State.PENDING)
        if not targets:
            return ""
        submitit = _submitit()
        name = f"{JOB_NAME}NAME"
        try:
            executor = self._executor(submitit, self.tree.slurm.absolute() / name, name, targets[0], "")
        except (RuntimeError, ValueError) as error:
            raise BatchFault(f"--engine slurm: {error}") from error
        if len(targets) > 1:
            executor.parameters["map_count"] = len(targets)
        # Submitit has no public name for this.
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "uid")
        return text.rstrip("\n") + "\n"

    def _executor(
        self, submitit: ModuleType, folder: Path, name: str, target: Target, after: str
    ) -> Any:  # of submitit, which has no types for its parameters
        settings = self.settings
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


def cell_words(target: Target, python: str) -> list[str]:
    """Return the command that trains `target` on a node: one call of apply_tuning for one cell.

    Every hyper-parameter is explicit, so that a study.toml that is changed meanwhile changes nothing.
    """
    request, artist, condition = target.request, target.artist, target.request.condition
    stack = request.stack
    words = [
        *(python, "-m", "mimicry.tuning.apply_tuning", f"--engine={LOCAL}", "--study=none", "--no-wait"),
        f"--data-root={request.tree.data_root.absolute()}",
        f"--stack={stack.name if stack.folder.parent == STACKS else stack.folder}",
        f"--variant={request.variant or NONE}",
        f"--protection={condition.protection}",
        f"--countermeasure={condition.countermeasure}",
        *(f"--split={artist.split}", f"--style={artist.style}", f"--artist={artist.name}"),
        f"--min-samples-per-artist={request.min_samples_per_artist}",
        f"--stall-minutes={request.stall_minutes:g}",
    ]
    if stack.takes_options:
        words += option_words(request.config)
    if request.hub is None or not request.uploads:
        words.append("--no-push-to-hub")
    else:
        words += ["--push-to-hub", *request.hub.words()]
    if request.train_script is not None:
        words.append(f"--train-script={request.train_script}")
    # Of an --overwrite of many, the others still have the old recipe when the first is trained.
    flags = {
        "--retrain-stale": request.retrain_stale or request.overwrite,
        "--allow-mixed-recipes": request.allow_mixed_recipes,
        "--allow-unpaired": request.allow_unpaired,
    }
    return [*words, *(flag for flag, given in flags.items() if given)]


def _task(target: Target, python: str) -> SlurmTask:
    replaces = None
    if target.request.overwrite and target.existing in _KEPT:
        replaces = training_of(target.folder)
    return SlurmTask(cell_words(target, python), target.folder.path.absolute(), replaces)


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
