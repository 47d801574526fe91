"""What the tests of the stack share: command lines on the tiny model, programs, and who is still running."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mimicry

STACK = Path(mimicry.__file__).parent / "tuning" / "hf_diffusers"
TRAINER = STACK / "train_dreambooth_lora_sd3.py"
WRAPPER = STACK / "local_dreambooth_lora_sd3_wrapper.py"
SECRET = "hf_" + "s3cret" * 5
DEADLINE_SECONDS = 120

_QUICK = (
    *("--resolution=32", "--rank=4", "--max_train_steps=2"),
    *("--gradient_accumulation_steps=1", "--mixed_precision=no"),
)


@dataclass(frozen=True)
class Studio:
    """A base model, and the same paintings in two conditions."""

    base_model: Path
    images: Path
    mist: Path

    def words(self, output_dir: Path, *flags: str, images: Path | None = None) -> list[str]:
        """Return the trainer's arguments for a short run in fp32; `flags` change or add to them."""
        return [
            f"--instance_data_dir={images or self.images}",
            f"--output_dir={output_dir}",
            f"--pretrained_model_name_or_path={self.base_model}",
            *_QUICK,
            *flags,
        ]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment for a program: one thread, no network, a token that nobody may write down."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_TOKEN": SECRET} | changes


def run(
    program: Path, words: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `program` by its path, as users do, to its end."""
    return subprocess.run(
        [sys.executable, str(program), *map(str, words)],
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


def start(
    program: Path, words: Sequence[str | Path], cwd: Path, log: Path, **changes: str
) -> subprocess.Popen[bytes]:
    """Start `program`, its output going to `log`; its standard input is a pipe that we hold."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, str(program), *map(str, words)],
            cwd=cwd,
            env=environment(**changes),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def await_step(process: subprocess.Popen[bytes], output_dir: Path, log: Path, count: int = 1) -> None:
    """Wait until the training in `output_dir` has taken `count` steps."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    metrics = output_dir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= count):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a started program, however far it has come."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def processes_naming(text: str) -> list[str]:
    """Return the command lines of all processes, but this one, that have `text` in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if text in words and int(path.parent.name) != os.getpid():
            found.append(words)
    return found


def training_run(output_dir: Path) -> dict[str, Any]:
    """Read training_run.json."""
    run: dict[str, Any] = json.loads((output_dir / "training_run.json").read_text("utf-8"))
    return run
