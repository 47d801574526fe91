"""Claims: a lease on a folder, so that only one process, with its children, works there.

    {folder}/.claim.json    {"token", "host", "since", "holders": [{"pid", "started"}, ...]}

The file appears in one step. A claim lasts as long as one of its holders lives: the process that took it and
the children that joined. On this machine process ids and start times tell that; for another machine it is the
file's mtime, which every holder renews: after SILENT_SECONDS without that, by the clock of the file system,
they count as gone, so the clocks of machines need not agree. The file is locked for the moment that it takes
to change it, and while a result is published (`Claim.fenced`); no lock is held during the work itself.
"""

import contextlib
import fcntl
import itertools
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
from mimicry.common.processes import process_start

CLAIM = ".claim.json"
# Set in the environment of a child that is to join the claim of its parent: token, space, folder.
CLAIM_VARIABLE = "MIMICRY_CLAIM"
HEARTBEAT_SECONDS = 20.0
# Caches of a shared file system may hide a heartbeat for a minute; a wrong takeover costs a training.
SILENT_SECONDS = 300.0
_TEMPORARY = ".claim-"
_POLL_SECONDS = 0.1
# A try fails when another process releases the claim, or takes a dead one over, at that very moment.
_MOST_TRIES = 1000


@dataclass(frozen=True)
class Lease:
    content: dict[str, Any]
    silent_seconds: float

    @property
    def token(self) -> str:
        return str(self.content.get("token"))

    @property
    def host(self) -> str:
        return str(self.content.get("host")).partition(" ")[0]

    @property
    def since(self) -> str:
        return str(self.content.get("since"))

    def live_holders(self) -> list[dict[str, Any]]:
        """Return the holders that live, as far as can be seen from here."""
        holders = self.content.get("holders", [])
        if self.content.get("host") == this_host():
            return [holder for holder in holders if process_start(holder["pid"]) == holder["started"]]
        return holders if self.silent_seconds < SILENT_SECONDS else []

    def other_holders(self) -> list[dict[str, Any]]:
        return [holder for holder in self.live_holders() if holder["pid"] != os.getpid()]

    def description(self) -> str:
        holders = ", ".join(f"pid {holder['pid']}" for holder in self.live_holders()[:1])
        return f"in use by {holders or 'nobody'} on {self.host} since {self.since}"


class Claim:
    """This process's share in the claim of a folder; a context manager that releases it."""

    def __init__(
        self, folder: Path, token: str, *, joined: bool = False, new_folders: Sequence[Path] = ()
    ) -> None:
        self.folder = folder
        self.path = folder / CLAIM
        self._token = token
        self._joined = joined
        self._new_folders = new_folders
        self._released = threading.Event()

    @classmethod
    def take(cls, folder: Path) -> "Claim":
        """Claim `folder`, made if need be, or join our parent's claim, or raise ClaimedElsewhere or
        ClaimLost.
        """
        token, _, claimed = os.environ.get(CLAIM_VARIABLE, "").partition(" ")
        if claimed != str(folder.resolve()):
            return cls.take_anew(folder)
        claim = cls(folder, token, joined=True)
        with _errors_named(folder), claim._locked() as lease:
            claim._write({**lease.content, "holders": [*lease.live_holders(), _this_process()]})
        return claim._renewed()

    @classmethod
    def take_anew(cls, folder: Path) -> "Claim":
        """Claim `folder`, whatever our parent passed on; MimicryError where it cannot be written."""
        token = uuid.uuid4().hex
        content = {"token": token, "host": this_host(), "since": utc_now(), "holders": [_this_process()]}
        new_folders: list[Path] = []
        with _errors_named(folder):
            try:
                _create(folder, content, new_folders)
                claim = cls(folder, token, new_folders=new_folders)
                try:
                    # Where files cannot be locked, we must know now, and not when there is a result.
                    with claim._locked():
                        pass
                except OSError:
                    claim.path.unlink(missing_ok=True)
                    raise
            except BaseException:
                _remove_empty(new_folders)
                raise
        return claim._renewed()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def variable(self) -> dict[str, str]:
        """Return what the environment of a child must hold for `take` to join this claim."""
        return {CLAIM_VARIABLE: f"{self._token} {self.folder.resolve()}"}

    def check(self) -> None:
        lease = read_lease(self.folder)
        if lease is None or lease.token != self._token:
            raise self._lost(lease)

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Run the body while nobody can take the claim over; ClaimLost if it is not ours any more."""
        with self._locked():
            yield
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def has_others(self) -> bool:
        lease = read_lease(self.folder)
        return lease is not None and bool(lease.other_holders())

    def release(self) -> None:
        """Give up our share, and remove empty folders that were made for it; other holders keep the claim.

        A process that joined keeps its share until it ends, because it may free its memory only then.
        """
        self._released.set()
        with contextlib.suppress(ClaimLost, OSError):
            with self._locked() as lease:
                others = lease.other_holders()
                if not others:
                    self.path.unlink()
                elif not self._joined:
                    self._write({**lease.content, "holders": others})
            _remove_empty(self._new_folders)

    def _write(self, content: dict[str, Any]) -> None:
        with _new_file(self.folder, content) as new:
            new.replace(self.path)

    @contextmanager
    def _locked(self) -> Iterator[Lease]:
        with _locked_lease(self.folder) as lease:
            if lease is None or lease.token != self._token:
                raise self._lost(lease)
            yield lease

    def _lost(self, lease: Lease | None) -> ClaimLost:
        now = "was removed" if lease is None else f"is another's: {lease.description()}"
        return ClaimLost(
            f"{self.path} {now}, so this process has lost its claim to {self.folder} and leaves it alone; "
            f"type the same command again to see what is there"
        )

    def _renewed(self) -> "Claim":
        threading.Thread(target=self._renew, name="claim", daemon=True).start()
        return self

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(ClaimLost, OSError):
                self.check()
                os.utime(self.path)


def read_lease(folder: Path) -> Lease | None:
    """Return the claim of `folder`, whoever holds it; None when there is none. Writes nothing."""
    try:
        return _lease_at(folder / CLAIM, time.time())
    except FileNotFoundError:
        return None


def claimed_by(folder: Path) -> str:
    """Say who works in `folder`; empty when nobody does. Writes nothing."""
    lease = read_lease(folder)
    return lease.description() if lease is not None and lease.live_holders() else ""


def this_host() -> str:
    """Return a name for this machine and its process ids.

    Containers and machines may share a host name, and after a reboot the same ids belong to other processes.
    """
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        words.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(words)


@contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MimicryError(
            f"{folder} cannot be claimed: {error.strerror}; look at `df -h` and `ls -la` "
            f"of that folder, make room or get write permission, and type the same command again"
        ) from error


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": process_start(os.getpid())}


def _lease_at(path: Path, now: float) -> Lease:
    """Return the lease in the file at `path`; one that cannot be read has no holders."""
    try:
        content, silent_seconds = read_json(path), now - path.stat().st_mtime
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError):
        content, silent_seconds = None, 0.0
    holders = content.get("holders") if isinstance(content, dict) else None
    if not isinstance(holders, list) or not all(map(_is_holder, holders)):
        content = {"host": this_host(), "holders": []}
    return Lease(content, silent_seconds)


def _is_holder(value: Any) -> bool:
    pid = value.get("pid") if isinstance(value, dict) else None
    return isinstance(pid, int) and pid > 0 and "started" in value


@contextmanager
def _new_file(folder: Path, content: dict[str, Any]) -> Iterator[Path]:
    """Yield a complete file beside the claim; it is removed afterwards if it is still there."""
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json_bytes(json.dumps(content, ensure_ascii=False)))
            file.flush()
            os.fsync(file.fileno())
        # Anybody who may write to the folder may take the claim over.
        path.chmod(0o666)
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _locked_lease(folder: Path) -> Iterator[Lease | None]:
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
            # The process that had the lock before us may have put another file in its place.
            if _is_at(descriptor, path):
                yield read_lease(folder)
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _create(folder: Path, content: dict[str, Any], new_folders: list[Path]) -> None:
    """Create the file of a claim, and the folders for it, which go into `new_folders`, innermost first."""
    for tries in itertools.count(1):
        try:
            for path in reversed([path for path in (folder, *folder.parents) if not os.path.lexists(path)]):
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    new_folders.insert(0, path)
            with _new_file(folder, content) as new:
                try:
                    os.link(new, folder / CLAIM)
                except FileExistsError:
                    _remove_dead(folder, new)
                else:
                    return
        # Whoever releases a claim removes the folder; whoever removes a dead claim also removes new files.
        except FileNotFoundError:
            if tries >= _MOST_TRIES:
                raise


def _remove_dead(folder: Path, new: Path) -> None:
    """Remove the claim of `folder` when its holders are gone; `new` has the time of the file system."""
    path, moved, now = folder / CLAIM, new.with_suffix(".dead"), new.stat().st_mtime
    with _locked_lease(folder) as locked:
        if locked is None:
            return
        lease = Lease(locked.content, now - path.stat().st_mtime)
        if lease.live_holders():
            raise ClaimedElsewhere(
                f"{folder} is {lease.description()}; wait for it, or end it, and type the same command again"
            )
        # The lock may not reach other machines. Of all that find the same dead claim, one can rename it; the
        # others may have got the claim of that one, and put it back.
        path.rename(moved)
        if _lease_at(moved, now).live_holders():
            with contextlib.suppress(FileExistsError):
                os.link(moved, path)
            moved.unlink()
            return
        for entry in folder.glob(f"{_TEMPORARY}*"):
            entry.unlink(missing_ok=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
