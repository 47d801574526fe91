"""apply_tuning on a small study with a stack that trains at once, for the tests of the program."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

import mimicry
from mimicry.commands.upload import upload
from mimicry.commands.verify import verify
from mimicry.common.processes import run_command
from mimicry.study.tree import StudyTree
from mimicry.tuning.apply_tuning import apply_tuning

PROGRAM = Path(mimicry.__file__).parent / "tuning" / "apply_tuning.py"
DEADLINE_SECONDS = 60

# The bytes of an adapter of rank 1.
MAKE_WEIGHTS = """\
entry = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
header = json.dumps({
    "transformer.x.lora_A.weight": entry,
    "transformer.x.lora_B.weight": entry | {"shape": [2, 1], "data_offsets": [8, 16]},
}).encode()
header += b" " * (-len(header) % 8)
weights = struct.pack("<Q", len(header)) + header + struct.pack("<4f", 1, 2, 3, 4)
"""
_QUICK_SCRIPT = (
    """\
import hashlib, json, os, struct, sys, time
from pathlib import Path

stack, input_dir, output = Path(__file__).parent, Path(sys.argv[1]), Path(sys.argv[2])
with (stack / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps({"pid": os.getpid(), "words": sys.argv[1:]}) + "\\n")
behaviour = json.loads((stack / "behaviours.json").read_text()).get(output.name, "train")
print("a quick training on", len(list(input_dir.iterdir())), "files", flush=True)
if behaviour.startswith("fail: "):
    sys.exit("error: " + behaviour[6:])
(output / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\\n')
if behaviour == "hang":
    time.sleep(600)
"""
    + MAKE_WEIGHTS
    + """\
if behaviour == "owe":
    run = {"hub": {"owed": "x", "error": "the Hub is away"}}
    run["weights"] = {"sha256": hashlib.sha256(weights).hexdigest()}
    (output / "training_run.json").write_text(json.dumps(run))
(output / "pytorch_lora_weights.safetensors").write_bytes(weights)
"""
)


def write_quick_stack(folder: Path, *, options: bool = True, script: str = _QUICK_SCRIPT) -> Path:
    """Write a stack that makes an adapter of rank 1 at once; with options, its traits are those of ours.

    `script` is another trainer than the quick one.
    """
    folder.mkdir(parents=True)
    command = "{python} {stack_dir}/train.py {input_dir} {output_dir}" + (" {options}" if options else "")
    (folder / "runner_config.json").write_text(json.dumps({"command": command}))
    (folder / "train.py").write_text(script)
    if options:
        (folder / "stack.py").write_text("from mimicry.tuning.hf_diffusers.stack import TRAITS\n")
    change_behaviours(folder)
    return folder


def change_behaviours(stack: Path, **behaviours: str) -> None:
    """Let a quick stack behave otherwise from now on.

    By name of artist: "fail: message", "hang" after a step, or "owe" the upload of a complete adapter.
    """
    (stack / "behaviours.json").write_text(json.dumps(behaviours))


def quick_calls(stack: Path) -> list[dict[str, Any]]:
    """Return what a quick stack was called with so far: `pid` and `words`."""
    path = stack / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Ended:
    """How a call ended."""

    code: int
    out: str
    err: str


@dataclass
class QuickStudio:
    """A study and a quick stack, in a folder of their own that is the working directory."""

    folder: Path
    tree: StudyTree
    stack: Path
    base_model: Path
    capsys: pytest.CaptureFixture[str]

    def words(self, *words: str) -> list[str]:
        """Return a command line for the quick stack and the tiny model, without uploads."""
        return [
            f"--data-root={self.tree.data_root}",
            f"--stack={self.stack}",
            f"--pretrained-model-name-or-path={self.base_model}",
            *("--resolution=64", "--rank=1", "--no-push-to-hub"),
            *words,
        ]

    def tune(self, *words: str) -> Ended:
        """Run apply_tuning in this process, with `words` after those of `self.words`."""
        return self.tune_bare(*self.words(*words))

    def tune_bare(self, *words: str) -> Ended:
        return self._run(apply_tuning, *words)

    def _run(self, command: click.Command, *words: str) -> Ended:
        self.capsys.readouterr()
        code = run_command(command, words)
        said = self.capsys.readouterr()
        return Ended(code, said.out, said.err)

    def verify(self, *words: str) -> Ended:
        return self.run(verify, *words)

    def upload(self, *words: str) -> Ended:
        return self.run(upload, *words)

    def run(self, command: click.Command, *words: str) -> Ended:
        """Run another command on the study and the quick stack."""
        return self._run(command, f"--data-root={self.tree.data_root}", f"--stack={self.stack}", *words)

    def trained(self) -> list[str]:
        """Return the names of the artists that the quick stack was called for."""
        return [Path(call["words"][0]).name for call in quick_calls(self.stack)]


def run_by_path(words: list[str], cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the program by its path, as the README does, without a token."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"} | changes
    return subprocess.run(
        [sys.executable, str(PROGRAM), *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
