"""What several calls of apply_tuning on one tree owe each other: each artist is trained once.

A call works on an artist only while it holds the claim to the folder of its adapter, and looks again at what
lies there once it has it: since the plan was made, another call may have been there.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.claims import CLAIM, Claim
from mimicry.common.errors import ClaimedElsewhere, MimicryError
from mimicry.study.tracker import BookmarkStatus
from mimicry.tuning.adapters.folder import (
    config_fault,
    litter,
    remove,
    set_adapter_aside,
    spent_checkpoints,
    write_config,
)
from mimicry.tuning.adapters.state import Existing, State, weights_identity
from mimicry.tuning.planning.plan import Target

ELSEWHERE = "by another call"


@dataclass(frozen=True)
class Found:
    """What another call has made of an artist since the plan: an outcome, and words for it."""

    outcome: str
    words: str


def set_aside_as_planned(target: Target) -> Path | None:
    """Set aside the adapter that the plan saw, and no other; return where it is now, if it was moved."""
    with suppress(ClaimedElsewhere), Claim.take_anew(target.output_dir):
        if weights_identity(target.output_dir) == target.weights:
            return set_adapter_aside(target.output_dir, target.existing.value)
    return None


def tidy(output_dir: Path) -> str:
    """Put the folder of a complete adapter in order, if nobody works there; return what was mended, in words.

    What killed processes have left is removed, and a damaged adapter_config.json written again. A folder that
    may not be written stays as it is, and so does one that another call has emptied meanwhile.
    """
    with suppress(MimicryError, OSError):
        return _tidied(output_dir)
    return ""


def _tidied(output_dir: Path) -> str:
    fault = config_fault(output_dir)
    if fault or (output_dir / CLAIM).exists() or litter(output_dir) or spent_checkpoints(output_dir):
        with Claim.take_anew(output_dir):
            remove(output_dir, [*litter(output_dir), *spent_checkpoints(output_dir)])
            if fault:
                write_config(output_dir)
                return f"{fault}; it was written again"
    return ""


def found_meanwhile(
    target: Target,
    judge: Callable[[Target], Existing],
    before: Mapping[str, Any],
    bookmark: Mapping[str, Any],
) -> Found | None:
    """Return what has become of a claimed artist elsewhere; None when it is still to be trained.

    Args:
        before: its bookmark when this call began.
        bookmark: its bookmark now. A failure that is new is not repeated.
    """
    found = judge(target)
    if found.state is State.BROKEN:
        set_adapter_aside(target.output_dir, State.BROKEN.value)
        return None
    if found.state is State.ABSENT:
        if bookmark != before and bookmark.get("status") == BookmarkStatus.FAILED:
            return Found("failed", f"{bookmark.get('error')} ({ELSEWHERE})")
        return None
    reason = f", {found.reason}" if found.reason else ""
    return Found("skipped", f"{found.state.value}: trained {ELSEWHERE}{reason}")
