"""Runs a command, such as a training as the wrapper starts it, and notes what it took and when it printed."""

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimicry.tuning.hf_diffusers.launch import TrainScript
from mimicry.tuning.hf_diffusers.one_artist import ArtistJob
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TrainingInputs


@dataclass(frozen=True)
class TimedRun:
    """What a command printed, and what it took.

    `lines` are texts with the seconds since the start. `cpu_seconds` are those of all its processes,
    `peak_bytes` is the peak host memory of one process.
    """

    code: int
    lines: list[tuple[str, float]]
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def output(self) -> str:
        return "".join(line for line, _ in self.lines)

    def when(self, words: str) -> float:
        """Return the seconds from the start to the first line that starts with `words`."""
        return next(when for line, when in self.lines if line.startswith(words))


def timed_run(config: TuningConfig, images: Path, folder: Path, *, evaluate: bool) -> TimedRun:
    """Train on `images` into `folder`, also the cache of prompt embeddings; `evaluate` on the same images.

    Raises:
        SystemExit: the training failed; the message is its output.
    """
    inputs = TrainingInputs(
        input_dir=images,
        output_dir=folder / images.name,
        eval_data_dir=images if evaluate else None,
    )
    job = ArtistJob(config=config, inputs=inputs, script=TrainScript(), stall_seconds=600)
    run = timed_command(job.command(), {"XDG_CACHE_HOME": str(folder)})
    if run.code != 0:
        raise SystemExit(run.output)
    return run


def timed_command(command: Sequence[str], variables: Mapping[str, str]) -> TimedRun:
    """Run `command` to its end, with `variables` in its environment."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1", **variables},
    )
    assert process.stdout is not None
    with process.stdout:
        lines = [(line, time.perf_counter() - begin) for line in process.stdout]
    # Unlike wait(), this returns the resources that the launcher and its trainer used.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    return TimedRun(
        process.returncode, lines, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    )


def median_times(what: str, command: Sequence[str], runs: int) -> dict[str, float]:
    """Run `command` once without counting it, then `runs` times.

    Returns:
        The medians of wall seconds and of the processor's, and the peak host memory of all runs in MB, by
        what each of them is.

    Raises:
        SystemExit: a run failed; the message is its output.
    """
    done = [timed_command(command, {}) for _ in range(runs + 1)]
    for run in done:
        if run.code != 0:
            raise SystemExit(run.output)
    counted = done[1:]
    return {
        f"{what} [s]": statistics.median(run.seconds for run in counted),
        f"{what}, of which computing [s]": statistics.median(run.cpu_seconds for run in counted),
        f"{what}, peak memory [MB]": max(run.peak_bytes for run in counted) / 1e6,
    }
