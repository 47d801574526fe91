"""The Hub from this side: repository names, the check before training, and the upload as a watched child.

The client can hang for ever on a dead connection, so an upload is a process of its own (hub_upload.py) that
is killed when it falls silent. It talks back in lines of JSON: {"stage": text} for each step it begins, then
{"result": {...}} or {"problem": text}. It gets the token through its environment, never through arguments.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mimicry.common.environment import hub_token
from mimicry.common.errors import UploadFailed
from mimicry.common.files import sha256_text
from mimicry.common.scrubbing import scrub

MAX_NAME_LENGTH = 96

_HASH_LENGTH = 8
# The client sends a file without a word: silence is allowed for as long as a slow line takes.
_SLOWEST_BYTES_PER_SECOND = 50_000


@dataclass(frozen=True, kw_only=True)
class UploadJob:
    """One complete adapter on its way to the Hub.

    `repository` is a name or namespace/name; a bare name goes under `namespace`, or else under the token's
    own user. `base_model_id` is the Hub id to publish in place of a base model that is a local folder.
    """

    folder: Path
    repository: str
    protection: str
    countermeasure: str
    artist: str
    namespace: str | None = None
    base_model_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Where an adapter is now: the repository's id, its address, and the commit that holds the files."""

    repository_id: str
    url: str
    commit: str


def repository_name(protection: str, countermeasure: str, artist: str) -> str:
    """Return `sd35-lora-{protection}-{countermeasure}-{artist}`, made valid for the Hub.

    Accents are stripped, anything outside A-Z a-z 0-9 . _ - becomes a dash. A name that had to change ends
    in a short hash of the original, so that distinct artists stay distinct; the composed and decomposed forms
    of one name are one artist.
    """
    original = unicodedata.normalize("NFC", f"sd35-lora-{protection}-{countermeasure}-{artist}")
    letters = [c for c in unicodedata.normalize("NFKD", original) if not unicodedata.combining(c)]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", "".join(letters))
    name = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name)).rstrip("-.")
    if name == original and len(name) <= MAX_NAME_LENGTH and not name.endswith(".git"):
        return name
    stem = name[: MAX_NAME_LENGTH - _HASH_LENGTH - 1].rstrip("-.")
    return f"{stem}-{sha256_text(original)[:_HASH_LENGTH]}"


def colliding_names(artists: Iterable[tuple[str, str]]) -> list[str]:
    """Return a problem for each repository name that several of the (artist, repository name) pairs share.

    The Hub does not tell upper from lower case in names, so neither does this.
    """
    sharing: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for artist, name in artists:
        sharing[name.lower()].append((artist, name))
    return [
        f"{' and '.join(repr(artist) for artist, _ in group)} would be uploaded to one repository, "
        f"{group[0][1]!r}: rename a folder, train them apart with --style and another "
        "--hub-namespace, or switch uploads off with --no-push-to-hub"
        for group in sharing.values()
        if len(group) > 1
    ]


def token_problems() -> list[str]:
    """Return what is wrong with the token, before anything is trained; for runs with uploads on."""
    if hub_token() is not None:
        return []
    return [
        "HF_TOKEN is not set, and trained adapters are to be uploaded to the Hub: make a token with write "
        "access at https://huggingface.co/settings/tokens and set HF_TOKEN in the environment or in a file "
        ".env (.env.example shows it), or switch uploads off with --no-push-to-hub"
    ]


def upload_adapter(job: UploadJob, *, stall_seconds: float = 300, python: str = sys.executable) -> Uploaded:
    """Upload the final files of `job.folder` to a private repository, in one commit, and say where they are.

    `stall_seconds` is how long the upload may be silent, beyond the time that sending the weights takes.

    Raises:
        UploadFailed: nothing was committed, as far as is known; the message holds no token.
    """
    if problems := token_problems():
        raise UploadFailed(*problems)
    from mimicry.tuning.adapter import WEIGHTS  # imports numpy, and apply_tuning imports this module

    weights = job.folder / WEIGHTS
    weight_bytes = weights.stat().st_size if weights.is_file() else 0
    heard = _run_child(job, stall_seconds + weight_bytes / _SLOWEST_BYTES_PER_SECOND, python)
    if heard.result is not None:
        return heard.result
    raise UploadFailed(
        scrub(
            f"{job.repository} was not uploaded: {heard.problem}; the adapter in {job.folder} is complete "
            "all the same: run local_dreambooth_lora_sd3_wrapper.py on it again to upload it; "
            "--no-push-to-hub switches uploads off"
        )
    )


@dataclass
class _Heard:
    """What the child has said so far."""

    stage: str = "starting"
    problem: str | None = None
    result: Uploaded | None = None

    def take(self, line: bytes) -> None:
        """Note what one line of the child's standard output says; what is no event is passed over."""
        with suppress(ValueError):
            event = json.loads(line)
            if not isinstance(event, dict):
                return
            self.stage = event.get("stage", self.stage)
            self.problem = event.get("problem", self.problem)
            if "result" in event:
                # The Hub has a hand in these texts too.
                self.result = Uploaded(**{key: scrub(text) for key, text in event["result"].items()})


def _run_child(job: UploadJob, silence_seconds: float, python: str) -> _Heard:
    """Run hub_upload.py on `job` until it ends or is silent too long; its group is gone when this returns."""
    process = subprocess.Popen(
        # -P: no module is taken from the working directory.
        [python, "-P", "-m", "mimicry.tuning.hub_upload"],
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
                process.stdin.write(json.dumps(asdict(job) | {"folder": str(job.folder)}).encode() + b"\n")
                process.stdin.flush()
            return _listen(process, silence_seconds)
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _listen(process: subprocess.Popen[bytes], silence_seconds: float) -> _Heard:
    assert process.stdout is not None
    assert process.stderr is not None
    heard, said, diagnostics = _Heard(), b"", b""
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
        heard.problem = f"the upload ended while {heard.stage}, saying: {last_words or 'nothing'}"
    return heard


def _child_environment() -> dict[str, str]:
    # The child must find this package also when it runs from a checkout that was never installed.
    root = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    token = hub_token()
    assert token is not None
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"HF_TOKEN": token, "PYTHONPATH": search_path}
