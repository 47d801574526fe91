"""The progress tracker: one JSON file in which every step of the study keeps its bookmarks.

    {"metadata": {...}, "step_status": {step: "not_started" | "in_progress" | "complete"},
     "bookmarks": {step: {key: {"status", "updated_at", ...}}}, "snapshot": {...}}

A writer takes the lock `.{name of the tracker}.lock`, reads the file, and replaces it by a rename. What
another step wrote, and what a later version may have added, is kept, in its order.
"""

import errno
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mimicry.common.errors import MimicryError
from mimicry.common.files import atomic_path, json_bytes, read_json, remove_leftovers, utc_now
from mimicry.study.tree import State

LOCK_TIMEOUT_SECONDS = 60.0

_LOCK_POLL_SECONDS = 0.02
# Another step may write in place and leave half a file for a moment: read again before calling it broken.
_LOOKS = 4
LOOK_AGAIN_SECONDS = 0.25

Bookmarks = dict[str, dict[str, Any]]


class ProgressTracker:
    """The bookmarks of one `step` in the tracker at `path`, which need not exist yet.

    `rebuild` returns this step's bookmarks by the files on disk, for a tracker that is gone or cannot be
    parsed; it is never called under the lock. `expected` returns the keys that must be complete before the
    step is; nothing stands for all that have bookmarks.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: str,
        data_root: Path,
        rebuild: Callable[[], Bookmarks] | None = None,
        expected: Callable[[], Collection[str]] | None = None,
    ) -> None:
        # Renaming onto a link would replace the link, and the other steps would write another file.
        self.path = path.resolve()
        self.lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._step = step
        self._data_root = data_root
        self._rebuild: Callable[[], Bookmarks] = rebuild or dict
        self._expected: Callable[[], Collection[str]] = expected or tuple

    def bookmarks(self) -> Bookmarks:
        """Return this step's bookmarks by key; a missing tracker has none. Writes nothing.

        Of one that cannot be parsed, warn on standard error and rebuild them; MimicryError if it cannot be
        read.
        """
        document, fault = self._read()
        if document is None:
            return {}
        if fault:
            document = self._restored(document, self._rebuild())
            self._warn(f"{fault}; its bookmarks of {self._step} are taken from the files on disk for now")
        bookmarks: Bookmarks = document.get("bookmarks", {}).get(self._step, {})
        return bookmarks

    def record(self, key: str, /, **fields: Any) -> None:
        self.record_many({key: fields})

    def record_many(self, fields_by_key: Mapping[str, Mapping[str, Any]]) -> None:
        """Merge fields into several bookmarks with one write; a field given as None is removed.

        A new bookmark is pending unless its status is given. The step is "complete" if all that is expected
        of it is, "not_started" if nothing was begun, else "in_progress". A tracker that cannot be parsed is
        set aside as {name}.unreadable-{time}.json, even if there is nothing to record. ValueError where a
        status is no `State`; MimicryError where lock, reading or writing failed, and the file is unchanged.
        """
        for fields in fields_by_key.values():
            if "status" in fields:
                State(fields["status"])
        if not fields_by_key and not self._read()[1]:
            return
        expected = self._expected()
        rebuilt: Bookmarks | None = None
        while not self._recorded(fields_by_key, rebuilt, expected):
            rebuilt = self._rebuild()

    def _recorded(
        self,
        fields_by_key: Mapping[str, Mapping[str, Any]],
        rebuilt: Bookmarks | None,
        expected: Collection[str],
    ) -> bool:
        """Record under the lock; do nothing and return False if bookmarks must be rebuilt first."""
        try:
            with self._locked():
                document, fault = self._read()
                if document is None or fault:
                    if rebuilt is None:
                        return False
                    document = self._restored(document, rebuilt)
                self._merge(document, fields_by_key)
                bookmarks = document["bookmarks"][self._step]
                document.setdefault("step_status", {})[self._step] = _step_status(bookmarks, expected)
                self._write(document, fault)
                return True
        except OSError as error:
            folder = _quoted(self.path.parent)
            raise MimicryError(
                f"{self.path}: the progress tracker cannot be written: {_described(error)}. "
                f"The file is unchanged. Look at `df -h {folder}` and `ls -la {folder}`, make room or get "
                "write permission, and run the same command again"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Imported late: it takes longer than everything else in this module, and reading needs no lock.
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Everybody who may write the folder may replace the tracker, so the umask of the first user must not
        # keep the rest of the lab from the lock. The file is empty, and the lock ends with its process.
        lock = FileLock(self.lock_path, mode=0o666)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_SECONDS, poll_interval=_LOCK_POLL_SECONDS)
        except Timeout as error:
            raise MimicryError(
                f"{self.lock_path}: another process has held the lock of the progress tracker for "
                f"{LOCK_TIMEOUT_SECONDS:g} seconds. Find it with `fuser -v {_quoted(self.lock_path)}`, "
                "wait for it or end it, and run the same command again"
            ) from error
        except OSError as error:
            raise MimicryError(
                f"{self.lock_path}: the lock of the progress tracker cannot be taken: {_described(error)}. "
                f"Look at `ls -la {_quoted(self.path.parent)}`, get write permission for the lock and "
                "its folder, and run the same command again"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the tracker, or the valid parts of a broken one, or None; and what is wrong, or None."""
        fault = ""
        for look in range(_LOOKS):
            if look:
                time.sleep(LOOK_AGAIN_SECONDS)
            try:
                return _valid_parts(read_json(self.path), self._step)
            except FileNotFoundError:
                return None, None
            except (ValueError, RecursionError) as error:
                fault = f"it is not JSON ({error})"
            except OSError as error:
                raise MimicryError(
                    f"{self.path}: the progress tracker cannot be read: {_described(error)}. "
                    f"Look at `ls -la {_quoted(self.path.parent)}`, get read permission for the file, "
                    "and run the same command again"
                ) from error
        return {}, fault

    def _restored(self, document: dict[str, Any] | None, rebuilt: Bookmarks) -> dict[str, Any]:
        if not document:
            metadata = {"created_at": utc_now()}
            document = {"metadata": metadata, "step_status": {}, "bookmarks": {}, "snapshot": {}}
        bookmarks = document.setdefault("bookmarks", {})
        bookmarks[self._step] = {**rebuilt, **bookmarks.get(self._step, {})}
        return document

    def _merge(self, document: dict[str, Any], fields_by_key: Mapping[str, Mapping[str, Any]]) -> None:
        now = utc_now()
        ours: Bookmarks = document.setdefault("bookmarks", {}).setdefault(self._step, {})
        for key, fields in fields_by_key.items():
            bookmark = ours.setdefault(key, {"status": State.WAITING})
            for name, value in {**fields, "updated_at": now}.items():
                if value is None:
                    bookmark.pop(name, None)
                else:
                    bookmark[name] = _for_json(value)
        metadata = document.setdefault("metadata", {})
        metadata["last_updated_at"] = now
        metadata.setdefault("data_root", str(self._data_root.absolute()))

    def _write(self, document: dict[str, Any], fault: str | None) -> None:
        # A rename ignores the permissions of the file itself, so respect somebody's `chmod a-w` here.
        if self.path.exists() and not self.path.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "the file is write-protected", str(self.path))
        content = json_bytes(json.dumps(document, indent=2, ensure_ascii=False))
        remove_leftovers(self.path)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content)
            if fault:
                stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
                aside = self.path.with_name(f"{self.path.stem}.unreadable-{stamp}{self.path.suffix}")
                self.path.replace(aside)
        if fault:
            self._warn(
                f"{fault}; it was set aside as {aside}, and the bookmarks of {self._step} were rebuilt "
                "from the files on disk. What other steps had recorded was kept where it could be read"
            )

    def _warn(self, problem: str) -> None:
        print(
            f"warning: {self.path} cannot be used as progress tracker: {problem}", file=sys.stderr, flush=True
        )


def _step_status(bookmarks: Bookmarks, expected: Collection[str]) -> str:
    keys = expected or bookmarks
    if keys and all(bookmarks.get(key, {}).get("status") == State.COMPLETE for key in keys):
        return "complete"
    begun = any(bookmark.get("status") != State.BLOCKED for bookmark in bookmarks.values())
    return "in_progress" if begun else "not_started"


def _valid_parts(document: Any, step: str) -> tuple[dict[str, Any], str | None]:
    """Return the parts of `document` that this step can use, and what is wrong with the rest, or None."""
    if not isinstance(document, dict):
        return {}, "it is not a JSON object"
    faults = []
    for name in ("metadata", "step_status", "bookmarks"):
        if not isinstance(document.get(name, {}), dict):
            faults.append(f'"{name}" is not an object')
            document[name] = {}
    bookmarks = document.get("bookmarks", {})
    ours = bookmarks.get(step, {})
    items = ours.items() if isinstance(ours, dict) else ()
    valid = {key: item for key, item in items if isinstance(item, dict)}
    if valid != ours:
        faults.append(f'"bookmarks" of "{step}" are not objects')
        bookmarks[step] = valid
    return document, "; ".join(faults) or None


def _for_json(value: Any) -> Any:
    # JSON has no NaN and no infinity, and most other programs would refuse the whole file.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _described(error: OSError) -> str:
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
