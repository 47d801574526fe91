"""Calls of apply_tuning with --engine slurm, as programs of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.real_slurm import RealSlurm, without_slurm

ROOT = Path(__file__).resolve().parents[2]
# The nodes have two processors and 2 GB each.
SMALL_JOBS = ("--slurm-mem=400M", "--slurm-cpus=1")


@dataclass
class ClusterCall:
    """A call, what it printed so far in `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, slurm: RealSlurm, log: Path, words: Sequence[str], cluster: bool = True) -> "ClusterCall":
        """Start the call; without `cluster` it trains on this machine."""
        engine = ("--engine=slurm", *SMALL_JOBS) if cluster else ()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        changes = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "mimicry.tuning.apply_tuning", "--no-push-to-hub", *engine, *words],
                cwd=log.parent,
                env=without_slurm(os.environ) | slurm.environment | changes,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(process, log)

    @classmethod
    def run(cls, slurm: RealSlurm, log: Path, words: Sequence[str], cluster: bool = True) -> tuple[int, str]:
        """Return exit code and output of a call."""
        call = cls.start(slurm, log, words, cluster)
        return call.end(), call.said()

    def said(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = 300) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.said()) from None
