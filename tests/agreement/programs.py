"""The real programs on a study, and what they say of its cells."""

import contextlib
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mimicry.cli import program as mimicry
from mimicry.common.processes import run_command
from mimicry.tuning.apply_tuning import apply_tuning
from tests.agreement.study import Study

Cells = dict[str, dict[str, Any]]
# What all programs say of a cell, beside the state and the reason.
FACTS = (
    *("steps", "step_count", "checkpoint", "recipe_hash", "seed"),
    *("variant", "protection", "countermeasure", "split", "style", "artist"),
)


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def next(self) -> str:
        """What the last line of a status says to type."""
        last = self.out.splitlines()[-1]
        assert last.startswith("next: "), self.out
        return last.removeprefix("next: ")


def run(words: Sequence[str]) -> Ended:
    """Run a command line in this process: `apply_tuning ...` or `mimicry ...`."""
    command = {"apply_tuning": apply_tuning, "mimicry": mimicry}[words[0]]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(command, list(words[1:]))
    return Ended(code, out.getvalue(), err.getvalue())


def run_apart(words: Sequence[str]) -> Ended:
    """Run a command line in a process of its own."""
    module = {"apply_tuning": "mimicry.tuning.apply_tuning", "mimicry": "mimicry.cli"}[words[0]]
    done = subprocess.run(
        [sys.executable, "-m", module, *words[1:]], capture_output=True, text=True, timeout=120
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def plan_words(study: Study, *more: str) -> list[str]:
    everything = ["--protection=all", "--countermeasure=all"]
    if any(word.startswith("--protection") for word in study.filters):
        everything = []
    return ["apply_tuning", *study.words, *everything, *study.filters, *study.typed, *more]


def status_words(study: Study, *more: str) -> list[str]:
    return ["mimicry", "status", *study.words, *study.filters, *more]


def command_line(study: Study, program: str) -> list[str]:
    """Return the call that tells the cells of a study."""
    shared = [*study.words, *study.filters]
    return {
        "plan": plan_words(study, "--dry-run", "--json"),
        "full plan": plan_words(study, "--dry-run", "--full", "--json"),
        "status": status_words(study, "--json"),
        "verify": ["mimicry", "verify", *shared, "--json"],
        "report": ["mimicry", "report", *shared, "--output=out", "--paintings=0", "--samples=0"],
    }[program]


def cells(study: Study, program: str, *, apart: bool = False) -> Cells:
    """Return what a program says of the cells, by key."""
    words = command_line(study, program)
    ended = (run_apart if apart else run)(words)
    if program == "report":
        assert ended.code == 0, (shlex.join(words), ended.err)
        content = json.loads((study.folder / "out" / "report.json").read_text())
    else:
        assert ended.out.startswith("{"), (shlex.join(words), ended.err)
        content = json.loads(ended.out)
    found = {cell["key"]: cell for cell in content["cells"]}
    assert len(found) == len(content["cells"]), "a cell is listed twice"
    return found
