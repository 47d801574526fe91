"""Calls of apply_tuning with --engine slurm, as programs of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimicry.study.tree import StudyTree
from tests.slurm.real_slurm import RealSlurm, without_slurm

ROOT = Path(__file__).resolve().parents[2]
# The nodes have two processors and 2 GB each.
_ENGINE = ("--no-push-to-hub", "--engine=slurm", "--slurm-mem=400M", "--slurm-cpus=1")


def submissions(tree: StudyTree) -> list[Path]:
    """Return the folders of all submissions to the cluster."""
    return sorted(tree.queue("slurm").glob("mimicry-*"))


@dataclass
class ClusterCall:
    """A call, what it printed so far in `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, slurm: RealSlurm, log: Path, words: Sequence[str]) -> "ClusterCall":
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        changes = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "mimicry.tuning.apply_tuning", *_ENGINE, *words],
                cwd=log.parent,
                env=without_slurm(os.environ) | slurm.environment | changes,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        slurm.users.append(process)
        return cls(process, log)

    @classmethod
    def run(cls, slurm: RealSlurm, log: Path, words: Sequence[str]) -> tuple[int, str]:
        """Return exit code and output of a call."""
        call = cls.start(slurm, log, words)
        return call.end(), call.said()

    def said(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = 300) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.said()) from None
