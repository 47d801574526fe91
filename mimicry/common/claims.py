"""Claims: which process works in a folder, told by a file in it, so that nobody else does.

    {folder}/.claim.json    {"token", "host", "since", "holders": [{"pid", "started"}, ...]}

The file is there whole or not at all, and exactly one process can make it. It is held by who took it and by
the processes below it that joined, as long as one of them lives. On this machine that is seen from their
pids and start times; on another one from the file's mtime, which every holder renews: it counts as gone when
it was silent for SILENT_SECONDS by the clock of the file system, so that the machines' clocks do not matter.

The file itself is locked while it is changed, which takes a moment, and while a result is put into its final
place (`Claim.kept`). The kernel drops the lock of a process that ends; no lock is held while work goes on.
"""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import ClaimedElsewhere, ClaimLost, MimicryError
from mimicry.common.files import json_bytes, read_json, utc_now

CLAIM = ".claim.json"
# Set in the environment of a child that is to join the claim of its parent: token, space, folder.
CLAIM_VARIABLE = "MIMICRY_CLAIM"
HEARTBEAT_SECONDS = 20.0
# Caches of a shared file system may hide a heartbeat for a minute; a wrong takeover costs a training.
SILENT_SECONDS = 300.0
_TEMPORARY = ".claim-"
_POLL_SECONDS = 0.1
# A try fails because another process gave a claim back, or took one over, at that very moment.
_MOST_TRIES = 1000


@dataclass(frozen=True)
class Holding:
    """What a claim's file says, and how long ago, in seconds, its holders last gave a sign of life."""

    content: dict[str, Any]
    silent_seconds: float

    @property
    def token(self) -> str:
        return str(self.content.get("token"))

    def living(self) -> list[dict[str, Any]]:
        """Return the holders that are, or must be taken to be, alive."""
        holders = self.content.get("holders", [])
        if self.content.get("host") == this_host():
            return [holder for holder in holders if process_start(holder["pid"]) == holder["started"]]
        return holders if self.silent_seconds < SILENT_SECONDS else []

    def described(self) -> str:
        """Say who holds it, in words."""
        holders = ", ".join(f"pid {holder['pid']}" for holder in self.living()[:1])
        host = str(self.content.get("host")).partition(" ")[0]
        return f"in use by {holders or 'nobody'} on {host} since {self.content.get('since')}"


class Claim:
    """This process's part in the claim of a folder. Use it as a context manager: it ends with the body."""

    def __init__(self, folder: Path, token: str, *, joined: bool = False, made: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._made = made
        self._joined = joined
        self.path = folder / CLAIM
        self._token = token
        self._ended = threading.Event()

    def _begun(self) -> "Claim":
        threading.Thread(target=self._beat, name="claim", daemon=True).start()
        return self

    @classmethod
    def take(cls, folder: Path) -> "Claim":
        """Claim `folder`, which is made if need be, or join the claim that our parent has handed to us.

        Raises:
            ClaimedElsewhere: another process works there.
            ClaimLost: the claim of our parent is gone.
        """
        token, _, claimed = os.environ.get(CLAIM_VARIABLE, "").partition(" ")
        if claimed != str(folder.resolve()):
            return cls.take_anew(folder)
        claim = cls(folder, token, joined=True)
        with _errors_named(folder), claim._locked() as holding:
            claim._write({**holding.content, "holders": [*holding.living(), _this_process()]})
        return claim._begun()

    @classmethod
    def take_anew(cls, folder: Path) -> "Claim":
        """Claim `folder`, whatever the environment says.

        Raises:
            ClaimedElsewhere: another process works there.
            MimicryError: the folder cannot be made or written.
        """
        token = uuid.uuid4().hex
        content = {"token": token, "host": this_host(), "since": utc_now(), "holders": [_this_process()]}
        made: list[Path] = []
        with _errors_named(folder), _removed_if_useless(made):
            _put(folder, content, made)
            claim = cls(folder, token, made=made)
            try:
                # Where files cannot be locked, that is to be known now, not when there is a result.
                with claim._locked():
                    pass
            except OSError:
                claim.path.unlink(missing_ok=True)
                raise
        return claim._begun()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def variable(self) -> dict[str, str]:
        """Return what the environment of a child must hold for `take` to join this claim."""
        return {CLAIM_VARIABLE: f"{self._token} {self.folder.resolve()}"}

    def check(self) -> None:
        """Raise ClaimLost when the claim is no longer ours."""
        holding = read_claim(self.folder)
        if holding is None or holding.token != self._token:
            raise self._lost(holding)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run the body while nobody can take the claim over: for putting a result into its place.

        Raises:
            ClaimLost: it is no longer ours, and the body was not run.
        """
        with self._locked():
            yield
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def wait_for_others(self, seconds: float) -> None:
        """Wait until no other process holds this claim, at most so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            holding = read_claim(self.folder)
            if holding is None or not _others(holding):
                return
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give the claim back; while others hold it too, it stays theirs.

        Who has joined it holds it until its process ends, which may free memory only then. Folders that were
        made for the claim, and in which nothing came to be, go with it.
        """
        self._ended.set()
        with contextlib.suppress(ClaimLost, OSError):
            with self._locked() as holding:
                others = _others(holding)
                if not others:
                    self.path.unlink()
                elif not self._joined:
                    self._write({**holding.content, "holders": others})
            _remove_empty(self._made)

    def _write(self, content: dict[str, Any]) -> None:
        with _new_file(self.folder, content) as new:
            new.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[Holding]:
        with _locked_claim(self.folder) as holding:
            if holding is None or holding.token != self._token:
                raise self._lost(holding)
            yield holding

    def _lost(self, holding: Holding | None) -> ClaimLost:
        now = "was removed" if holding is None else f"is another's: {holding.described()}"
        return ClaimLost(
            f"{self.path} {now}, so this process has lost its claim to {self.folder} and leaves it alone; "
            f"type the same command again to see what is there"
        )

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(ClaimLost, OSError):
                self.check()
                os.utime(self.path)


def read_claim(folder: Path) -> Holding | None:
    """Return the claim of `folder`, whoever holds it; None when there is none. Writes nothing."""
    try:
        content = read_json(folder / CLAIM)
        return _holding(content, time.time() - (folder / CLAIM).stat().st_mtime)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return _holding(None, 0.0)


def claimed_by(folder: Path) -> str:
    """Say who works in `folder`; empty when nobody does. Writes nothing."""
    holding = read_claim(folder)
    return holding.described() if holding is not None and holding.living() else ""


@contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MimicryError(
            f"{folder} cannot be claimed: {error.strerror}; look at `df -h` and `ls -la` "
            f"of that folder, make room or get write permission, and type the same command again"
        ) from error


def this_host() -> str:
    """Return what tells this machine from others, as far as process ids go.

    Containers may share a name; a reboot gives the same ids to others.
    """
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        words.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(words)


def process_start(pid: int) -> str | None:
    """Return when a process of this machine started, in a form of its own; None when it has ended."""
    try:
        # The name of the program stands in brackets and may hold anything.
        fields = Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    else:
        return None if fields[0] in b"ZX" else fields[19].decode()
    with contextlib.suppress(ProcessLookupError):  # no /proc: not Linux
        os.kill(pid, 0)
        return "unknown"
    return None


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": process_start(os.getpid())}


def _others(holding: Holding) -> list[dict[str, Any]]:
    return [holder for holder in holding.living() if holder["pid"] != os.getpid()]


def _holding(content: Any, silent_seconds: float) -> Holding:
    """Return what a claim's file holds; one that is none of ours has no holders."""
    holders = content.get("holders") if isinstance(content, dict) else None
    if not isinstance(holders, list) or not all(
        isinstance(holder, dict) and isinstance(holder.get("pid"), int) and "started" in holder
        for holder in holders
    ):
        return Holding({"host": this_host(), "holders": []}, silent_seconds)
    return Holding(content, silent_seconds)


@contextmanager
def _new_file(folder: Path, content: dict[str, Any]) -> Iterator[Path]:
    """Yield a whole file beside the claim, which is removed afterwards if it is still there."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json_bytes(json.dumps(content, ensure_ascii=False)))
            file.flush()
            os.fsync(file.fileno())
        # Whoever may write the folder may take the claim over.
        path.chmod(0o666)
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _locked_claim(folder: Path) -> Iterator[Holding | None]:
    """Yield the claim of `folder`, or None, while no other process can change it."""
    path = folder / CLAIM
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Who had the lock before us may have put another file in its place.
            if _is_at(descriptor, path):
                yield read_claim(folder)
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _put(folder: Path, content: dict[str, Any], made: list[Path]) -> None:
    """Make `folder` and its claim; the folders that were made go into `made`, the innermost first.

    Raises:
        ClaimedElsewhere: others hold it.
        OSError: it cannot be done.
    """
    tries = 0
    while True:
        try:
            for path in reversed([path for path in (folder, *folder.parents) if not os.path.lexists(path)]):
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    made.insert(0, path)
            if _put_file(folder, content):
                return
        # Who gives a claim back removes the folder, who removes a dead one sweeps new files away.
        except FileNotFoundError:
            tries += 1
            if tries == _MOST_TRIES:
                raise


@contextmanager
def _removed_if_useless(made: Sequence[Path]) -> Iterator[None]:
    """Remove what was made if the body fails."""
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _put_file(folder: Path, content: dict[str, Any]) -> bool:
    """Make the file of a claim; False, when one of others was in the way, which is removed now.

    Raises:
        ClaimedElsewhere: these others live.
        FileNotFoundError: the folder or the new file was removed.
    """
    with _new_file(folder, content) as new:
        try:
            os.link(new, folder / CLAIM)
        except FileExistsError:
            _remove_dead(folder, new)
        else:
            return True
    return False


def _remove_dead(folder: Path, new: Path) -> None:
    """Remove the claim of `folder` when its holders are gone; `new` tells the time of the file system.

    Raises:
        ClaimedElsewhere: they are not.
    """
    with _locked_claim(folder) as holding:
        if holding is None:
            return
        silent_seconds = new.stat().st_mtime - (folder / CLAIM).stat().st_mtime
        holding = Holding(holding.content, silent_seconds)
        if holding.living():
            raise ClaimedElsewhere(
                f"{folder} is {holding.described()}; wait for it, or end it, and type the same command again"
            )
        for entry in folder.glob(f"{_TEMPORARY}*"):
            entry.unlink(missing_ok=True)
        (folder / CLAIM).unlink()
