"""Atomic writes, canonical JSON, hashes, setting files aside, and a memory of files that passed a check."""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mimicry.common.environment import cache_folder
from mimicry.common.tokens import without_token

# No writer takes so long, whatever the clocks of machines that share a file system say.
_LEFT_SECONDS = 3600.0

# Inode number, size and time of change of a file; None when there is no file.
FileIdentity = tuple[int, int, int] | None


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def json_bytes(text: str) -> bytes:
    """Return the JSON `text` as the bytes of a file, in UTF-8 and with a newline at the end.

    A name that is not UTF-8 holds lone surrogates; as \\udc.. they stay JSON that every program can read.
    The Hub token is removed: an error of some library may quote it.
    """
    return (without_token(text) + "\n").encode("utf-8", "backslashreplace")


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_identity(path: Path) -> FileIdentity:
    """Return a value that changes when the file at `path` is replaced or written to."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix_of_host(path), suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, for files alone; on success they are fsynced, and it gets that name.

    Otherwise it is removed; of a killed process it stays, with a dot before the name. `path` must not exist.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        for entry in temporary.iterdir():
            entry.chmod(0o666 & ~_umask())
            _fsync(entry)
        temporary.chmod(0o777 & ~_umask())
        _fsync(temporary)
        temporary.rename(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` left beside it; for the holder of its lock.

    A lock may not reach other machines, so their files have to be old.
    """
    prefix, own = _prefix(path), _prefix_of_host(path)
    for entry in path.parent.iterdir():
        if entry.name.startswith(prefix):
            # A file of another user that cannot be removed does no harm.
            with suppress(OSError):
                if entry.name.startswith(own) or time.time() - entry.stat().st_mtime > _LEFT_SECONDS:
                    entry.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as JSON for people: two spaces, non-ASCII letters as they are."""
    write_bytes(path, json_bytes(json.dumps(value, indent=2, ensure_ascii=False)))


def read_json(path: Path) -> Any:
    """Read the JSON file at `path`; a byte order mark is allowed. OSError, ValueError or RecursionError."""
    return json.loads(path.read_bytes())


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def existing_part(folder: Path) -> Path:
    """Return the nearest folder above that is there; below it the others can be made."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def set_aside(folder: Path, names: list[str], reason: str) -> Path | None:
    """Move `names` of `folder`, if any exist, into `folder/set_aside/{time}-{reason}/`, and return that."""
    present = [name for name in names if os.path.lexists(folder / name)]
    if not present:
        return None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    destination = folder / "set_aside" / f"{stamp}-{reason}"
    destination.mkdir(parents=True)
    for name in present:
        (folder / name).replace(destination / name)
    return destination


def _prefix(path: Path) -> str:
    # A short hash, because the name itself may already have the 255 bytes that are allowed.
    return f".tmp-{sha256_text(path.name)[:16]}-"


def _prefix_of_host(path: Path) -> str:
    return f"{_prefix(path)}{sha256_text(socket.gethostname())[:8]}-"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # On Linux the umask can be read without changing it; elsewhere only by setting it.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    current = os.umask(0o022)
    os.umask(current)
    return current


_MEMORY_VERSION = 1


class FileMemory:
    """Which files of one folder passed a check, so that the next call need not check them again.

    For every file that passed, by name, a small file in the user's cache holds facts such as size and time of
    change, and what the check found: values that JSON gives back unchanged. It is replaced as a whole, so at
    worst one process replaces what another has just written; one that cannot be read or written is ignored.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        """Read what earlier checks of this `kind` remembered."""
        self._folder = folder
        # By the real path: a link may lead elsewhere tomorrow.
        self._file = cache_folder(kind) / f"{sha256_text(os.path.realpath(folder))}.json"
        self._known, self._known_findings = _read_memory(self._file)
        self._good, self._findings = dict[str, Any](), dict[str, Any]()

    @property
    def is_empty(self) -> bool:
        return not self._known

    def knows(self, name: str, facts: Any) -> bool:
        """Return whether the file passed when it had these facts, and so stays remembered."""
        if facts is None or self._known.get(name) != facts:
            return False
        self._good[name] = facts
        return True

    def recall(self, name: str, facts: Any) -> Any:
        """Return what was found of the file when it had these facts, and stays remembered; or None."""
        if name not in self._known_findings or not self.knows(name, facts):
            return None
        self._findings[name] = self._known_findings[name]
        return self._findings[name]

    def keep(self, name: str, facts: Any, found: Any = None) -> None:
        """Remember a file that passed, and what was found of it; on any thread."""
        self._good[name] = facts
        if found is not None:
            self._findings[name] = found

    def save(self) -> None:
        if (self._good, self._findings) != (self._known, self._known_findings):
            content = {"version": _MEMORY_VERSION, "folder": str(self._folder), "good": self._good}
            if self._findings:
                content["found"] = self._findings
            with suppress(OSError):
                write_json(self._file, content)


def _read_memory(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = read_json(file)
        known = content["good"] if content["version"] == _MEMORY_VERSION else {}
        found = content.get("found", {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return {}, {}
    return (known, found) if isinstance(known, dict) and isinstance(found, dict) else ({}, {})
