"""Runs one training as the wrapper does, and notes when each line was printed."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from mimicry.tuning.hf_diffusers.artist_job import ArtistJob
from mimicry.tuning.hf_diffusers.launch import TrainScript
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.inputs import TrainingInputs


@dataclass(frozen=True)
class TimedRun:
    """Output, time and memory of a training.

    `lines` are texts with the seconds since the start; `peak_bytes` is the peak host memory of one process.
    """

    lines: list[tuple[str, float]]
    seconds: float
    peak_bytes: int

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
    job = ArtistJob(config=config, inputs=inputs, script=TrainScript.own(), stall_seconds=600)
    begin = time.perf_counter()
    process = subprocess.Popen(
        job.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(folder)},
    )
    assert process.stdout is not None
    lines = [(line, time.perf_counter() - begin) for line in process.stdout]
    # Unlike wait(), this returns the resources that the launcher and its trainer used.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit("".join(line for line, _ in lines))
    return TimedRun(lines, seconds, usage.ru_maxrss * 1024)
