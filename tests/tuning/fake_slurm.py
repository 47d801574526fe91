"""Stand-ins for the programs of Slurm, and for submitit, for tests of our side of the conversation."""

import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.tree import StudyTree
from mimicry.tuning.execution.slurm import new_submission

_SCRIPT = """\
#!/bin/sh
echo "$0 $*" >> {folder}/calls
[ -f {folder}/refusal ] && cat {folder}/refusal >&2 && exit 1
cat {folder}/$(basename $0).txt
"""


@dataclass
class FakeSlurm:
    """Programs on the path that show what a test has written."""

    folder: Path

    @classmethod
    def install(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeSlurm":
        folder.mkdir()
        for name in ("squeue", "scancel", "scontrol"):
            (folder / f"{name}.txt").write_text("")
            (folder / name).write_text(_SCRIPT.format(folder=folder))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return cls(folder)

    def show(self, *rows: str) -> None:
        """Let squeue show these jobs: name, number, index in the array, state, node, reason."""
        (self.folder / "squeue.txt").write_text("".join(f"{row}\n" for row in rows))

    def configure(self, text: str) -> None:
        (self.folder / "scontrol.txt").write_text(text)

    def refuse(self, words: str) -> None:
        (self.folder / "refusal").write_text(words)

    def calls(self, program: str) -> list[str]:
        """Return the arguments of each call of a program."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        begin = f"{self.folder / program} "
        return [line.removeprefix(begin) for line in lines if line.startswith(begin)]


def put_submission(tree: StudyTree, keys: list[str], name: str = "mimicry-aa") -> str:
    """Note a submission of jobs for these cells, and return the name of the jobs."""
    new_submission(tree, name, dict.fromkeys(keys))
    return name


class FailedJobError(Exception):
    """Stands in for submitit's."""


@dataclass
class FakeSubmitit:
    """Takes submissions in the place of submitit; `answers` are errors, by the number of the submission."""

    answers: list[str] = field(default_factory=list)
    largest: int = 10_000
    submitted: list[list[Any]] = field(default_factory=list)
    parameters: list[dict[str, Any]] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeSubmitit":
        utils = types.SimpleNamespace(FailedJobError=FailedJobError)
        module = types.SimpleNamespace(SlurmExecutor=self._executor, core=types.SimpleNamespace(utils=utils))
        monkeypatch.setitem(sys.modules, "submitit", module)
        return self

    def _executor(self, **facts: Any) -> "FakeExecutor":
        return FakeExecutor(self, facts)


@dataclass
class FakeExecutor:
    """Stands in for submitit's executor."""

    cluster: FakeSubmitit
    parameters: dict[str, Any]
    _tasks: list[Any] = field(default_factory=list)
    _jobs: list[types.SimpleNamespace] = field(default_factory=list)
    _submitit_command_str: str = "python -m submitit.core._submit"

    def update_parameters(self, **parameters: Any) -> None:
        self.parameters |= parameters

    def submit(self, task: Any) -> types.SimpleNamespace:
        self._tasks.append(task)
        self._jobs.append(types.SimpleNamespace(job_id=""))
        return self._jobs[-1]

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        if len(self._tasks) > self.cluster.largest:
            raise FailedJobError("sbatch: error: AssocMaxSubmitJobLimit")
        if self.cluster.answers:
            raise FailedJobError(self.cluster.answers.pop(0))
        self.cluster.submitted.append(self._tasks)
        self.cluster.parameters.append(self.parameters)
        number = len(self.cluster.submitted)
        for index, job in enumerate(self._jobs):
            job.job_id = f"{number}_{index}"

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return f"#!/bin/bash\n# {json.dumps(self.parameters, default=str)}\n{command}\n"
