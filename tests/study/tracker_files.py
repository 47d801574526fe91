"""Trackers for the tests: one with everything that is not ours, broken ones, and how to look at them."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mimicry.study.tracker import Bookmarks, ProgressTracker

STEP = "step_3_fine_tune_sd35"
KEY = "hf_diffusers/none/none/historical/impressionism/Claude_Monet"

# What a later version, or another step of the study, might have written; the order is part of the test.
FOREIGN: dict[str, Any] = {
    "version": 9,
    "snapshot": {"host": "gpu7", "deep": {"er": [1, 2.5, None, True]}},
    "bookmarks": {
        "step_9": {"z": {"status": "verified"}, "a": {"note": "é"}},
        STEP: {"zzz": {"later": {"b": 1, "a": [2]}, "status": "archived"}, KEY: {"hub": "url", "loss": 1.0}},
        "step_1": ["a list, for once"],
    },
    "metadata": {"created_at": "2020-01-01", "owner": "lab", "data_root": "/elsewhere"},
    "step_status": {"step_9": "complete", "step_1": "not_started"},
    "extra": None,
}

BROKEN = {
    "empty": b"",
    "truncated": b'{"metadata": {"created_at": "2020',
    "zeros": b"\0" * 512,
    "list": b"[1, 2]",
    "no-utf8": b'{"a": "\xe9"}',
    "bottomless": b"[" * 200_000,
    "bookmarks-list": b'{"bookmarks": []}',
    "bookmarks-null": b'{"bookmarks": null}',
    "step-list": json.dumps({"bookmarks": {STEP: ["a"]}}).encode(),
    "bookmark-text": json.dumps({"bookmarks": {STEP: {"a": "complete"}}}).encode(),
    "metadata-text": b'{"metadata": "x", "bookmarks": {}}',
    "status-list": b'{"step_status": []}',
}
over_broken = pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())


def tracker_at(path: Path, step: str = STEP, rebuilt: Bookmarks | None = None) -> ProgressTracker:
    rebuild = None if rebuilt is None else lambda: rebuilt
    return ProgressTracker(path, step=step, data_root=Path("data"), rebuild=rebuild)


def document(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(entry): (entry.stat().st_mtime_ns, entry.stat().st_ino) for entry in folder.rglob("*")}


@contextmanager
def held_lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
