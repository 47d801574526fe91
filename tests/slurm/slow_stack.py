"""A stack that trains slowly and can be stopped: it goes on from its checkpoint, and notes who trains."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.tuning.quick_studio import MAKE_WEIGHTS

_SCRIPT = (
    """\
import json, os, signal, struct, sys, time
from pathlib import Path

stack, output = Path(__file__).parent, Path(sys.argv[2])
settings = json.loads((stack / "settings.json").read_text())
steps = settings["steps"]
cell = "/".join(output.parts[-4:])
if output.name in settings["failing"]:
    sys.exit("error: " + settings["failing"][output.name])


def note(file, **facts):
    facts |= {"cell": cell, "node": os.environ.get("SLURMD_NODENAME"), "at": time.time()}
    facts |= {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with (stack / file).open("a") as lines:
        lines.write(json.dumps(facts) + "\\n")


stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
first = max([int(path.name[11:]) for path in output.glob("checkpoint-*")], default=0)
note("begun.jsonl", first=first)
with (output / "metrics.jsonl").open("a" if first else "w") as metrics:
    for step in range(first + 1, steps + 1):
        time.sleep(0.1)
        if step == steps and not stopped:
            note("waiting.jsonl", first=first)
            while not ((stack / "may_end").exists() or stopped):
                time.sleep(0.1)
        metrics.write(json.dumps({"step": step, "loss": 0.5}) + "\\n")
        metrics.flush()
        if stopped or step % 10 == 0:
            (output / f"checkpoint-{step}").mkdir(exist_ok=True)
        if stopped:
            print("stopped by SIGTERM", flush=True)
            sys.exit(143)
for path in output.glob("checkpoint-*"):
    path.rmdir()
"""
    + MAKE_WEIGHTS
    + """\
(output / "pytorch_lora_weights.safetensors").write_bytes(weights)
note("done.jsonl", first=first)
"""
)


@dataclass
class SlowStack:
    """The stack in `folder`; a step takes a tenth of a second, and the last one waits for `let_end`."""

    folder: Path

    @classmethod
    def write(
        cls,
        folder: Path,
        steps: int,
        failing: dict[str, str] | None = None,
        *,
        may_end: bool = True,
    ) -> "SlowStack":
        """Write the stack; `failing` has messages by name of artist, and `may_end` is of the last step."""
        folder.mkdir()
        command = "{python} {stack_dir}/train.py {input_dir} {output_dir}"
        (folder / "runner_config.json").write_text(json.dumps({"command": command}))
        (folder / "train.py").write_text(_SCRIPT)
        settings = {"steps": steps, "failing": failing or {}}
        (folder / "settings.json").write_text(json.dumps(settings))
        stack = cls(folder)
        if may_end:
            stack.let_end()
        return stack

    def let_end(self) -> None:
        """Let trainings take their last step."""
        (self.folder / "may_end").touch()

    def begun(self) -> list[dict[str, object]]:
        """Return a line for each time that a training began: cell, node, gpu, at, and its first step."""
        return self._lines("begun.jsonl")

    def waiting(self) -> list[dict[str, object]]:
        """Return a line for each time that a training came to its last step, before it was taken."""
        return self._lines("waiting.jsonl")

    def done(self) -> list[dict[str, object]]:
        """Return a line for each training that reached its end."""
        return self._lines("done.jsonl")

    def _lines(self, name: str) -> list[dict[str, object]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
