"""Talking to the Hub in a child process, which can be killed: the client can hang on a dead connection.

The child is a module that calls `serve`. It reads its request as one line of JSON from standard input, and
answers in lines of JSON: {"stage": text} for each step it begins, then {"result": ...} or {"problem": text}.
The token reaches it through its environment, never through arguments.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.environment import hub_token
from mimicry.common.errors import MimicryError
from mimicry.common.processes import running_child, watch_parent
from mimicry.common.tokens import scrub
from mimicry.tuning.hub.retries import explain

# Seconds before each retry of a request: what the client waits where it retries by itself.
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)


@dataclass
class Reply:
    """What the child has answered so far; once it has ended there is a problem or a result."""

    stage: str = "starting"
    problem: str | None = None
    result: Any = None

    def add(self, line: bytes) -> None:
        """Note what one line of the child's standard output says; other output is ignored."""
        with suppress(ValueError):
            # What the child says may quote the Hub, and the Hub may quote the token.
            event = json.loads(scrub(line.decode()))
            if isinstance(event, dict):
                self.stage = event.get("stage", self.stage)
                self.problem = event.get("problem", self.problem)
                self.result = event.get("result", self.result)


def run_child(
    module: str, request: Mapping[str, Any], *, silence_seconds: float, waits: Sequence[float], python: str
) -> Reply:
    """Run `module` until it ends or is silent too long; none of its processes is left when this returns."""
    reply = Reply()
    with running_child(
        # -P: no module is imported from the working directory.
        [python, "-P", "-m", module],
        output=subprocess.PIPE,
        environment=_child_environment(),
        grace_seconds=0,
    ) as child:
        try:
            for line in child.ask(json.dumps({**request, "waits": list(waits)}).encode(), silence_seconds):
                reply.add(line)
        except TimeoutError:
            stalled = f"no sign of life for {silence_seconds:.0f} s while {reply.stage}; it was ended"
            reply.problem = reply.problem or stalled
        if reply.problem is None and reply.result is None:
            last_words = " ".join(child.diagnostics.decode(errors="replace").split())[-1000:]
            reply.problem = f"it ended while {reply.stage}, saying: {last_words or 'nothing'}"
    return reply


def serve(action: Callable[[dict[str, Any]], Any]) -> int:
    """Be the child: do `action` on the request from standard input, and answer its result or its problem."""
    request = json.loads(sys.stdin.buffer.readline())
    watch_parent(lambda: os._exit(1))
    try:
        answer(result=action(request))
    except MimicryError as error:
        answer(problem=str(error))
    except Exception as error:  # the client does not wrap the errors of its HTTP library
        answer(problem=explain(error, request.get("namespace")))
    else:
        return 0
    return 1


def answer(**event: Any) -> None:
    """Tell the parent something; in the child only."""
    print(json.dumps(event), flush=True)


def _child_environment() -> dict[str, str]:
    # The child must find this package also when it runs from a checkout that was never installed.
    root = str(Path(__file__).resolve().parents[3])
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    token = hub_token()
    assert token is not None
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"HF_TOKEN": token, "PYTHONPATH": search_path}
