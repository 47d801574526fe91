"""The progress tracker: one JSON file in which every step of the study keeps its bookmarks.

    {
      "metadata": {"created_at", "last_updated_at", "data_root", ...},
      "step_status": {step: "not_started" | "in_progress" | "complete"},
      "bookmarks": {step: {key: {"status", "updated_at", ...}}},
      "snapshot": {...}
    }

Several processes and several steps of the study write it. Whoever does takes the lock
`.{name of the tracker}.lock` beside it, reads, changes, and renames a whole new file into its place. What
another step wrote, and what a later version may have added, survives in its order.
"""

import errno
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mimicry.common.errors import MimicryError
from mimicry.common.files import atomic_path, json_bytes, read_json, remove_leftovers, utc_now
from mimicry.study.states import State

LOCK_TIMEOUT_SECONDS = 60.0

_LOCK_POLL_SECONDS = 0.02
# A step that writes in place leaves a torn file for a moment: look again before calling it broken.
_LOOKS = 4
LOOK_AGAIN_SECONDS = 0.25
_INDENTED_LEVELS = 3
_ENCODER = json.JSONEncoder(ensure_ascii=False)

Bookmarks = dict[str, dict[str, Any]]


class ProgressTracker:
    """The bookmarks of one `step` in the tracker at `path`, which need not exist yet.

    `rebuild` returns this step's bookmarks as the files on disk tell them. It is called when the tracker
    cannot be parsed, or is gone when something is to be recorded, and never while the lock is held.
    """

    def __init__(
        self, path: Path, *, step: str, data_root: Path, rebuild: Callable[[], Bookmarks] | None = None
    ) -> None:
        # Renaming onto a link would part us from the file that the other steps write.
        self.path = path.resolve()
        self.lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._step = step
        self._data_root = data_root
        self._rebuild: Callable[[], Bookmarks] = rebuild or dict

    def bookmarks(self) -> Bookmarks:
        """Return this step's bookmarks by key; a missing tracker has none. Writes nothing anywhere.

        A tracker that cannot be parsed is left where it is: a warning goes to standard error, and the
        bookmarks are those that can be rebuilt.

        Raises:
            MimicryError: the file is there and cannot be read.
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
        """Merge `fields` into the bookmark `key`: see `record_many`."""
        self.record_many({key: fields})

    def record_many(self, fields_by_key: Mapping[str, Mapping[str, Any]]) -> None:
        """Merge fields into several bookmarks with one write; a field given as None is removed.

        A new bookmark is pending unless its status is given; `updated_at` is set. The step is "in_progress"
        as long as one of its bookmarks, whether named here or not, is not complete, else "complete".

        A tracker that cannot be parsed is set aside as {name}.unreadable-{time}.json, with a warning on
        standard error, and a new one is written, even when there is nothing to record.

        Raises:
            ValueError: a status is not one of `State`.
            MimicryError: the lock was not to be had within LOCK_TIMEOUT_SECONDS, or the tracker cannot be
                read or written. It then holds what it held.
        """
        for fields in fields_by_key.values():
            if "status" in fields:
                State(fields["status"])
        if not fields_by_key and not self._read()[1]:
            return
        rebuilt: Bookmarks | None = None
        while not self._recorded(fields_by_key, rebuilt):
            rebuilt = self._rebuild()

    def _recorded(self, fields_by_key: Mapping[str, Mapping[str, Any]], rebuilt: Bookmarks | None) -> bool:
        """Record under the lock; False, and nothing done, when bookmarks must be rebuilt first."""
        try:
            with self._locked():
                document, fault = self._read()
                if document is None or fault:
                    if rebuilt is None:
                        return False
                    document = self._restored(document, rebuilt)
                self._merge(document, fields_by_key)
                self._write(document, fault)
                return True
        except OSError as error:
            folder = _quoted(self.path.parent)
            raise MimicryError(
                f"{self.path}: the progress tracker cannot be written: {_described(error)}. "
                f"What it held is safe. Look at `df -h {folder}` and `ls -la {folder}`, make room or get "
                "write permission, and run the same command again"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # Imported here: it takes longer than everything else in this module, and reading needs no lock.
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The lock has no content, and the kernel drops it with its holder. Whoever may write the folder may
        # replace the tracker, so the umask of the first user must not keep the rest of the lab from the lock.
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
        """Return the tracker, or None when there is none; and what is wrong with it, or None.

        Of a broken tracker the sound parts are returned.
        """
        fault = ""
        for look in range(_LOOKS):
            if look:
                time.sleep(LOOK_AGAIN_SECONDS)
            try:
                return _sound_parts(read_json(self.path), self._step)
            except FileNotFoundError:
                return None, None
            except (ValueError, RecursionError) as error:
                fault = f"it is no JSON ({error})"
            except OSError as error:
                raise MimicryError(
                    f"{self.path}: the progress tracker cannot be read: {_described(error)}. "
                    f"Look at `ls -la {_quoted(self.path.parent)}`, get read permission for the file, "
                    "and run the same command again"
                ) from error
        return {}, fault

    def _restored(self, document: dict[str, Any] | None, rebuilt: Bookmarks) -> dict[str, Any]:
        """Return a tracker with what is left of `document`, and with `rebuilt` where it has no bookmark."""
        if document is None or not document:
            document = {
                "metadata": {"created_at": utc_now()},
                "step_status": {},
                "bookmarks": {},
                "snapshot": {},
            }
        bookmarks = document.setdefault("bookmarks", {})
        bookmarks[self._step] = {**rebuilt, **bookmarks.get(self._step, {})}
        return document

    def _merge(self, document: dict[str, Any], fields_by_key: Mapping[str, Mapping[str, Any]]) -> None:
        now = utc_now()
        ours: Bookmarks = document.setdefault("bookmarks", {}).setdefault(self._step, {})
        for key, fields in fields_by_key.items():
            bookmark = ours.setdefault(key, {"status": State.PENDING})
            for name, value in {**fields, "updated_at": now}.items():
                if value is None:
                    bookmark.pop(name, None)
                else:
                    bookmark[name] = _for_json(value)
        metadata = document.setdefault("metadata", {})
        metadata["last_updated_at"] = now
        metadata.setdefault("data_root", str(self._data_root.absolute()))
        complete = all(bookmark.get("status") == State.COMPLETE for bookmark in ours.values())
        document.setdefault("step_status", {})[self._step] = "complete" if complete else "in_progress"

    def _write(self, document: dict[str, Any], fault: str | None) -> None:
        # A rename needs no permission from the file itself, so somebody's `chmod a-w` has to be heeded here.
        if self.path.exists() and not self.path.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "the file is write-protected", str(self.path))
        content = json_bytes(_layered_json(document, _INDENTED_LEVELS))
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
                "from the files on disk. What other steps had recorded was kept as far as it could be read"
            )

    def _warn(self, problem: str) -> None:
        print(
            f"warning: {self.path} cannot be used as progress tracker: {problem}", file=sys.stderr, flush=True
        )


def _sound_parts(document: Any, step: str) -> tuple[dict[str, Any], str | None]:
    """Return what of `document` can be used as a tracker, and what is wrong with the rest, or None.

    Only the parts that we write are looked at: other steps, other versions have their own ways.
    """
    if not isinstance(document, dict):
        return {}, "it is no JSON object"
    faults = []
    for name in ("metadata", "step_status", "bookmarks"):
        if not isinstance(document.get(name, {}), dict):
            faults.append(f'"{name}" is no object')
            document[name] = {}
    bookmarks = document.get("bookmarks", {})
    ours = bookmarks.get(step, {})
    sound = (
        {key: item for key, item in ours.items() if isinstance(item, dict)} if isinstance(ours, dict) else {}
    )
    if sound != ours:
        faults.append(f'"bookmarks" of "{step}" are no objects')
        bookmarks[step] = sound
    return document, "; ".join(faults) or None


def _layered_json(value: Any, levels: int, indent: str = "") -> str:
    """Return JSON whose outer `levels` are indented by two spaces, and the rest on one line each.

    One bookmark to a line is easy to read and to search, and json.dumps is slow when it has to indent:
    1.1 s instead of 0.4 s for 100,000 bookmarks.
    """
    if not levels or not value or not isinstance(value, dict):
        return _ENCODER.encode(value)
    inner = indent + "  "
    lines = [
        f"{inner}{_ENCODER.encode(key)}: {_layered_json(item, levels - 1, inner)}"
        for key, item in value.items()
    ]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _for_json(value: Any) -> Any:
    # JSON has no word for a loss that is NaN or infinite, and most other readers give up on the whole file.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _described(error: OSError) -> str:
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
