"""Talking to the Hub in a process of its own, which can be ended: the client can hang on a dead connection.

The child is a module that calls `serve`. It gets its words as one line of JSON on standard input, and talks
back in lines of JSON: {"stage": text} for each step it begins, then {"result": {...}} or {"problem": text}.
The token reaches it through its environment, never through arguments.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.environment import hub_token
from mimicry.common.errors import MimicryError
from mimicry.common.scrubbing import scrub
from mimicry.tuning.hub.retries import explained

# Before a request is repeated, in seconds: what the client waits where it repeats one itself.
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)


@dataclass
class Heard:
    """What the child has said so far; after its end there is a problem or a result."""

    stage: str = "starting"
    problem: str | None = None
    result: Any = None

    def take(self, line: bytes) -> None:
        """Note what one line of the child's standard output says; what is no event is passed over."""
        with suppress(ValueError):
            event = json.loads(line)
            if not isinstance(event, dict):
                return
            self.stage = event.get("stage", self.stage)
            self.problem = event.get("problem", self.problem)
            # The Hub has a hand in these texts too.
            self.result = _scrubbed(event.get("result", self.result))


def run_child(
    module: str, words: Mapping[str, Any], *, silence_seconds: float, waits: Sequence[float], python: str
) -> Heard:
    """Run `module` until it ends or is silent too long; its process group is gone when this returns."""
    process = subprocess.Popen(
        # -P: no module is taken from the working directory.
        [python, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_child_environment(),
        start_new_session=True,
        bufsize=0,
    )
    with process:
        assert process.stdin is not None
        try:
            # Standard input stays open: its end tells the child that this process is gone.
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**words, "waits": list(waits)}).encode() + b"\n")
                process.stdin.flush()
            return _listen(process, silence_seconds)
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def serve(action: Callable[[dict[str, Any]], Any]) -> int:
    """Be the child: do `action` on the words from standard input, and say its result or its problem."""
    words = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        say(result=action(words))
    except MimicryError as error:
        say(problem=str(error))
    except Exception as error:  # the client lets the errors of its HTTP library through
        say(problem=explained(error, words.get("namespace")))
    else:
        return 0
    return 1


def say(**event: Any) -> None:
    """Tell the parent something; in the child only."""
    print(json.dumps(event), flush=True)


def _listen(process: subprocess.Popen[bytes], silence_seconds: float) -> Heard:
    assert process.stdout is not None
    assert process.stderr is not None
    heard, said, diagnostics = Heard(), b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(silence_seconds)
            if not ready:
                stalled = f"no sign of life for {silence_seconds:.0f} s while {heard.stage}; it was ended"
                heard.problem = heard.problem or stalled
                return heard
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    diagnostics = (diagnostics + chunk)[-4000:]
                else:
                    *lines, said = (said + chunk).split(b"\n")
                    for line in lines:
                        heard.take(line)
    if heard.problem is None and heard.result is None:
        last_words = " ".join(diagnostics.decode(errors="replace").split())[-1000:]
        heard.problem = f"it ended while {heard.stage}, saying: {last_words or 'nothing'}"
    return heard


def _child_environment() -> dict[str, str]:
    # The child must find this package also when it runs from a checkout that was never installed.
    root = str(Path(__file__).resolve().parents[3])
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    token = hub_token()
    assert token is not None
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"HF_TOKEN": token, "PYTHONPATH": search_path}


def _scrubbed(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items()}
    return [_scrubbed(item) for item in value] if isinstance(value, list) else value


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
