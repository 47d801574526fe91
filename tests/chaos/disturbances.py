"""What the chaos program does to a run: signals at random moments, damage to random files."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.tiny_pilot import Run

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ROLES = ("orchestrator", "wrapper", "launcher", "trainer")
_POLL_SECONDS = 0.005
# Short phases that a random moment would rarely hit, by the name of a file that appears then.
_MOMENTS = (
    *(".claim.json", "metrics.jsonl", "checkpoint-1", ".checkpoint-", "checkpoint-3"),
    *(".saving-", "adapter_config.json", ".tmp-", "pytorch_lora_weights.safetensors"),
)


@dataclass(frozen=True)
class Kill:
    """Send the signal `number` to a process: after some seconds, or soon after a file has appeared."""

    role: str
    number: signal.Signals
    seconds: float
    moment: str | None

    def __str__(self) -> str:
        when = f"{self.seconds:.3f} s after " + (f"{self.moment} appeared" if self.moment else "the last")
        return f"{self.number.name} to {self.role} {when}"


def draw_kill(rng: random.Random, run_seconds: float) -> Kill:
    """Draw a signal for a run that takes `run_seconds` undisturbed."""
    role, number = rng.choice(_ROLES), rng.choice(_SIGNALS)
    if rng.random() < 0.5:
        # Not the full time: several signals may be drawn, and the machine may be faster now.
        return Kill(role, number, rng.uniform(0, 0.6 * run_seconds), None)
    return Kill(role, number, rng.uniform(0, 0.1), rng.choice(_MOMENTS))


def kill_when_due(kill: Kill, run: Run, folder: Path) -> str:
    """Wait for the moment or the end of the run, send the signal, and describe what was done."""
    begin = time.monotonic()
    if kill.moment is not None:
        known = _appeared(folder, kill.moment)
        _wait(lambda: run.has_ended() or bool(_appeared(folder, kill.moment or "") - known))
    due = time.monotonic() + kill.seconds
    _wait(lambda: run.has_ended() or time.monotonic() >= due)
    if run.has_ended():
        return "the run had ended"
    pids = [pid for pid, role in run.processes().items() if role == kill.role]
    waited = f"after {time.monotonic() - begin:.2f} s"
    if not pids:
        return f"there was no such process {waited}"
    try:
        os.kill(pids[0], kill.number)
    except ProcessLookupError:
        return f"it had just ended {waited}"
    return waited


def break_a_file(folder: Path, rng: random.Random) -> str:
    """Damage one of the files below `folder`, except those set aside, and describe what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "set_aside" not in path.parts)
    how = rng.choice(("truncate", "flip", "empty", "delete"))
    if not files:
        return "nothing to break"
    path = rng.choice(files)
    content = path.read_bytes()
    place = rng.randrange(max(1, len(content)))
    if how == "delete":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncate":
        path.write_bytes(content[:place])
    elif content:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
    return f"{how} {path.relative_to(folder)}"


def _appeared(folder: Path, moment: str) -> set[str]:
    """Return the paths of all files and folders whose name starts with `moment`."""
    return {
        f"{path}/{name}"
        for path, folders, files in os.walk(folder / "study" / "models")
        for name in [*folders, *files]
        if name.startswith(moment)
    }


def _wait(over: Callable[[], bool]) -> None:
    while not over():
        time.sleep(_POLL_SECONDS)
