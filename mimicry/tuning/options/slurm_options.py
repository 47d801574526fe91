"""The options of a Slurm cluster, and what they ask for."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from mimicry.common.errors import UsageError
from mimicry.tuning.options.click_options import option, options

SLURM_TOPIC = "Slurm"
SLURM = "slurm"
# What a job does before its time limit takes this long at most: a step, a checkpoint, the ends of programs.
SIGNAL_SECONDS = 180
_LEAST_MINUTES = 10
_NO_GRES = "none"
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
_PREFIX = "slurm_"
# We set these ourselves, or there is an option for them.
_OURS = frozenset(
    {
        *("array", "open-mode", "job-name", "output", "error", "signal", "requeue", "no-requeue", "time"),
        *("mem", "cpus-per-task", "gres", "partition", "account", "qos", "constraint", "ntasks", "nodes"),
    }
)


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """What each job asks the cluster for; see the options. `minutes` is its time limit."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    minutes: int = 120
    cpus: int = 8
    memory: str = "64G"
    max_parallel: int | None = None
    setup: tuple[str, ...] = ()
    extra: tuple[tuple[str, str | bool], ...] = ()
    python: str = sys.executable

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "SlurmSettings":
        """Return what a command with `slurm_options` was given.

        Raises:
            UsageError: values that Slurm cannot take, all of them.
        """
        given = {
            name.removeprefix(_PREFIX): value
            for name, value in parameters.items()
            if name.startswith(_PREFIX) and value is not None
        }
        problems = []
        try:
            given["minutes"] = minutes_of(given.pop("time"))
        except ValueError as error:
            problems.append(str(error))
        if not _MEMORY.fullmatch(given["memory"]):
            problems.append(f"--slurm-mem {given['memory']}: it takes a size such as 64G")
        extra = [_key_and_value(word) for word in given["extra"]]
        problems += [
            f"--slurm-extra {word}: it takes KEY=VALUE, or KEY alone, as sbatch does without its --"
            for word, (key, _) in zip(given["extra"], extra, strict=True)
            if not re.fullmatch(r"[a-z][a-z-]*", key)
        ]
        problems += [
            f"--slurm-extra {key}: this program sets it; see the other options --slurm-..."
            for key, _ in extra
            if key in _OURS
        ]
        if problems:
            raise UsageError(*problems)
        return cls(**{**given, "extra": tuple(extra)})

    def gres_for(self, processes: int) -> str | None:
        """Return the generic resources of a job: by default a GPU for each of its processes."""
        if self.gres is None:
            return f"gpu:{processes}"
        return None if self.gres == _NO_GRES else self.gres


def minutes_of(text: str) -> int:
    """Return a time in a form of Slurm as minutes, rounded up.

    Raises:
        ValueError: it has another form, or is too short for a job that has to write a checkpoint in time.
    """
    found = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))", text)
    if found is None:
        raise ValueError(f"--slurm-time {text}: it takes minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS")
    numbers = [int(number or 0) for number in found.groups()]
    days, day_hours, day_minutes, day_seconds, hours, minutes, seconds, only_minutes = numbers
    total = 60 * (60 * (24 * days + day_hours + hours) + day_minutes + minutes + only_minutes)
    whole = -(-(total + day_seconds + seconds) // 60)
    if whole < _LEAST_MINUTES:
        raise ValueError(
            f"--slurm-time {text}: it takes {_LEAST_MINUTES} minutes or more, since a job stops and writes a "
            f"checkpoint {SIGNAL_SECONDS // 60} minutes before its end"
        )
    return whole


def _key_and_value(word: str) -> tuple[str, str | bool]:
    key, has_value, value = word.partition("=")
    return key.removeprefix("--"), value if has_value else True


def _slurm(name: str, parameter: str | None = None, **facts: Any) -> Any:
    return option(f"--slurm-{name}", f"{_PREFIX}{parameter or name}", topic=SLURM_TOPIC, **facts)


slurm_options = options(
    _slurm("partition", help="Partition; by default that of the cluster."),
    _slurm("account", help="Account that the time is charged to."),
    _slurm("qos", help="Quality of service."),
    _slurm(
        "time",
        default="2:00:00",
        metavar="TIME",
        help="Time limit of a job, as sbatch takes it. A training that needs longer goes on from its "
        "checkpoint in the next job.",
    ),
    _slurm("gres", help="Generic resources; by default gpu:N for the N of --num-processes. none: no GPU."),
    _slurm("constraint", help="Features that a node must have."),
    _slurm("cpus", type=click.IntRange(min=1), default=8, help="Processors of a job."),
    _slurm("mem", "memory", default="64G", metavar="SIZE", help="Host memory of a job."),
    _slurm(
        "max-parallel",
        "max_parallel",
        type=click.IntRange(min=1),
        help="At most so many jobs of this call at a time.",
    ),
    _slurm("setup", multiple=True, help="Line of shell to run before a training; may be repeated."),
    _slurm(
        "extra",
        multiple=True,
        metavar="KEY[=VALUE]",
        help="Another option of sbatch, without its --; may be repeated.",
    ),
    _slurm(
        "python",
        help="Python on the nodes, with mimicry and torch; by default the one that runs this program.",
    ),
)
