"""What the chaos program does to a run: signals at random instants, damage to random files."""

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
# Moments that are short, and that a random instant would seldom hit: by what lies in an adapter's folder.
_MOMENTS = (
    *(".claim.json", "metrics.jsonl", "checkpoint-1", ".checkpoint-", "checkpoint-3"),
    *(".saving-", "adapter_config.json", ".tmp-", "pytorch_lora_weights.safetensors"),
)


@dataclass(frozen=True)
class Kill:
    """Send `number` to a process of that role: at an instant, or soon after something has appeared."""

    role: str
    number: signal.Signals
    seconds: float
    moment: str | None

    def __str__(self) -> str:
        when = f"{self.seconds:.3f} s after " + (f"{self.moment} appeared" if self.moment else "the last")
        return f"{self.number.name} to {self.role} {when}"


def draw_kill(chance: random.Random, run_seconds: float) -> Kill:
    """Draw what to do to a run that takes so long undisturbed."""
    role, number = chance.choice(_ROLES), chance.choice(_SIGNALS)
    if chance.random() < 0.5:
        # Not the whole of it: several signals may be drawn, and the machine may be faster now.
        return Kill(role, number, chance.uniform(0, 0.6 * run_seconds), None)
    return Kill(role, number, chance.uniform(0, 0.1), chance.choice(_MOMENTS))


def kill_when_due(kill: Kill, run: Run, folder: Path) -> str:
    """Wait for the instant, or the end of the run, and send the signal; say in words what was done."""
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
        return f"there was none {waited}"
    try:
        os.kill(pids[0], kill.number)
    except ProcessLookupError:
        return f"it had just ended {waited}"
    return waited


def break_a_file(folder: Path, chance: random.Random) -> str:
    """Damage one of the files below `folder` that are ours, if there is any; say in words what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "set_aside" not in path.parts)
    how = chance.choice(("truncate", "flip", "empty", "delete"))
    if not files:
        return "nothing to break"
    path = chance.choice(files)
    content = path.read_bytes()
    place = chance.randrange(max(1, len(content)))
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
    """Return the paths of all files and folders whose name begins so."""
    return {
        f"{path}/{name}"
        for path, folders, files in os.walk(folder / "study" / "models")
        for name in [*folders, *files]
        if name.startswith(moment)
    }


def _wait(over: Callable[[], bool]) -> None:
    while not over():
        time.sleep(_POLL_SECONDS)
