"""Talking to the Hub in a child process, which can be killed: the client can hang on a dead connection.

The child is `client.py`, which calls `serve`. It reads its request as one line of JSON from standard input,
and answers in lines of JSON: {"stage": text} for each step it begins, then {"result": ...} or {"problem":
text}. The token reaches it through its environment, never through arguments.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mimicry.common.environment import hub_token
from mimicry.common.errors import MimicryError
from mimicry.common.processes import running_child, watch_parent
from mimicry.common.tokens import scrub
from mimicry.tuning.hub.names import TOKENS_PAGE

_PROGRAM = "mimicry.tuning.hub.client"


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
    action: str, request: Mapping[str, Any], *, silence_seconds: float, waits: Sequence[float], python: str
) -> Reply:
    """Have the child do `action` until it ends or is silent too long; no process of it is left afterwards."""
    reply = Reply()
    with running_child(
        # -P: no module is imported from the working directory.
        [python, "-P", "-m", _PROGRAM, action],
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
    print(json.dumps(event), flush=True)


def _child_environment() -> dict[str, str]:
    # The child must find this package also when it runs from a checkout that was never installed.
    root = str(Path(__file__).resolve().parents[3])
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    token = hub_token()
    assert token is not None
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"HF_TOKEN": token, "PYTHONPATH": search_path}


Result = TypeVar("Result")

# Too many requests, a server in trouble, or another commit that came first.
_TRANSIENT = frozenset({408, 412, 429, 500, 502, 503, 504})
# The client's HTTP library, which differs between its versions.
_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "requests", "urllib3"})
_LONGEST_WAIT_SECONDS = 120.0
_STORAGE_PAGE = "https://huggingface.co/settings/billing"


class RetriesExhausted(Exception):
    """A request failed although the client retried it by itself; the cause is its last error."""


def retry(call: Callable[[], Result], waits: Sequence[float], waiting: Callable[[str], None]) -> Result:
    """Return what `call` returns; after a transient error, call again after each of `waits`, in seconds.

    huggingface_hub retries the transfer of files by itself, but not the other requests. A call must do no
    harm when it is retried because its answer was lost; the Hub may ask for longer waits.

    Raises:
        Exception: the last error of `call`.
    """
    for wait in waits:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            seconds = max(wait, _asked_to_wait(error))
            waiting(f"waiting {seconds:.0f} s to ask again, after {_one_line(error)[:200]}")
        time.sleep(seconds)
    return call()


def explain(error: Exception, namespace: str | None) -> str:
    from huggingface_hub import constants

    said, where = _one_line(error), os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    match status_of(error):
        case 401:
            return (
                f"the Hub does not accept the token in HF_TOKEN, which is wrong, revoked or expired: make a "
                f"new one at {TOKENS_PAGE} ({said})"
            )
        case 403:
            if any(word in said.casefold() for word in ("storage", "quota")):
                return (
                    f"the Hub has no more room for private files of {namespace or 'the user of HF_TOKEN'}: "
                    f"remove repositories that are not needed, or get more storage at {_STORAGE_PAGE}; the "
                    f"token is not at fault ({said})"
                )
            owner = f"to {namespace}" if namespace else "for its user"
            return (
                f"the token in HF_TOKEN may not write {owner}: give it write access at {TOKENS_PAGE} ({said})"
            )
        case 429:
            return f"{where} accepts no more requests for now (status 429); try again in an hour ({said})"
        case None if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE forbids requests to the Hub; unset it"
        case None:
            return f"{where} did not answer as it should; check the network ({said})"
        case status:
            return f"{where} answered with status {status} ({said})"


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error of the client; None when there was no answer."""
    status = getattr(_response_of(error), "status_code", None)
    return status if isinstance(status, int) else None


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, RetriesExhausted):
        return False
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES


def _response_of(error: BaseException) -> object:
    # The client wraps errors of the file transfer in others.
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            return response
        cause = cause.__cause__
    return None


def _asked_to_wait(error: Exception) -> float:
    headers = getattr(_response_of(error), "headers", {})
    try:
        return min(float(headers.get("Retry-After", 0)), _LONGEST_WAIT_SECONDS)
    except ValueError:  # a date
        return 0.0


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, RetriesExhausted) and error.__cause__ else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:600]
