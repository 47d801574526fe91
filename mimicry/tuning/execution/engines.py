"""What --engine chooses from: the executors, each with the options that only it has."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from mimicry.common.errors import UsageError
from mimicry.study import StudyTree
from mimicry.tuning.adapters.inspect import QueuedJob
from mimicry.tuning.execution.cluster import QueueUnknown
from mimicry.tuning.execution.executor import Executor
from mimicry.tuning.execution.local import LocalExecutor, choose_places
from mimicry.tuning.execution.slurm import SlurmExecutor, jobs_of_study
from mimicry.tuning.options.click_options import option, options
from mimicry.tuning.options.slurm_options import SLURM, SLURM_TOPIC, SlurmSettings, slurm_options


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A choice of --engine.

    Attributes:
        parameters: how the click parameters begin that have an effect with this engine only.
        make: makes the executor from the parameters of a call, and the number of processes that train an
            adapter together.
        instead: what to use in the place of options of other engines.
        queued: the jobs of a study that are in its queue; see `Executor.queued`.
    """

    name: str
    parameters: tuple[str, ...]
    make: Callable[[Mapping[str, Any], int], Executor]
    instead: str = ""
    queued: Callable[[StudyTree], Mapping[str, QueuedJob]] | None = None


_LOCAL = Engine(
    name="local",
    parameters=("gpus", "parallel"),
    make=lambda given, processes: LocalExecutor(
        places=choose_places(given["gpus"], given["parallel"], processes)
    ),
)
_SLURM = Engine(
    name=SLURM,
    parameters=("slurm_",),
    make=lambda given, _: SlurmExecutor(SlurmSettings.of(given)),
    instead="type --slurm-gres for the GPUs of a job, and --slurm-max-parallel for the number of jobs at a "
    "time",
    queued=jobs_of_study,
)
# The first one is the default.
ENGINES = (_LOCAL, _SLURM)

engine_options = options(
    option(
        "--engine",
        topic=SLURM_TOPIC,
        type=click.Choice([engine.name for engine in ENGINES]),
        default=ENGINES[0].name,
        help="Train on this machine, or submit a job for each adapter to a Slurm cluster.",
    ),
    slurm_options,
)


def make_executor(context: click.Context, processes: int) -> Executor:
    """Return the executor that a command with `engine_options` asks for.

    Args:
        processes: those that train an adapter together.

    Raises:
        UsageError: options that the engine cannot take, or that have no effect with it.
    """
    (engine,) = (engine for engine in ENGINES if engine.name == context.params["engine"])
    for other in ENGINES:
        given = [] if other is engine else _typed(context, other)
        if given and other is ENGINES[0]:
            raise UsageError(
                f"{', '.join(given)} would have no effect with --engine {engine.name}; {engine.instead}"
            )
        if given:
            them = "it" if len(given) == 1 else "them"
            raise UsageError(
                f"{', '.join(given)} would have no effect without --engine {other.name}; type that too, or "
                f"leave {them} out"
            )
    return engine.make(context.params, processes)


def queued_jobs(tree: StudyTree) -> tuple[dict[str, QueuedJob], list[str]]:
    """Return the jobs of a study that may still train, by key, and which queues do not answer."""
    jobs: dict[str, QueuedJob] = {}
    faults = []
    for engine in ENGINES:
        if engine.queued is None:
            continue
        try:
            jobs |= {key: job for key, job in engine.queued(tree).items() if job.is_live}
        except QueueUnknown as error:
            faults.append(str(error))
    return jobs, faults


def _typed(context: click.Context, engine: Engine) -> Collection[str]:
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if (parameter.name or "").startswith(engine.parameters)
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
