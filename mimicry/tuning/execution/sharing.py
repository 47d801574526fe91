"""How several calls of apply_tuning share one tree: each adapter is trained once.

A call that works on an adapter holds the claim to its folder. Once it has the claim it looks again at what
lies there: another call may have trained the adapter since the plan was made.
"""

from contextlib import suppress

from mimicry.common.claims import CLAIM, Claim
from mimicry.common.errors import MimicryError
from mimicry.study import State
from mimicry.tuning.adapters import AdapterFolder, AdapterState
from mimicry.tuning.adapters.bookmark import Bookmark
from mimicry.tuning.planning import Target

ELSEWHERE = "by another call"


def is_as_planned(target: Target) -> bool:
    """Return whether the adapter that the plan saw, and wants to be trained again, is still there."""
    if target.existing is State.PENDING:
        return False
    return target.folder.weights_identity() == target.weights


def repair(folder: AdapterFolder) -> str:
    """Repair the folder of a complete adapter, unless a call works there; return what was repaired, in words.

    Leftovers of killed processes are removed, and a damaged adapter_config.json is written again. A folder
    that may not be written stays as it is, and so does one that another call has emptied meanwhile.
    """
    with suppress(MimicryError, OSError):
        fault = folder.config_fault()
        if fault or (folder.path / CLAIM).exists() or folder.leftovers() or folder.spent_checkpoints():
            with Claim.take_anew(folder.path):
                folder.remove([*folder.leftovers(), *folder.spent_checkpoints()])
                if fault:
                    folder.write_config()
                    return f"{fault}; it was written again"
    return ""


def recheck(target: Target, before: Bookmark, bookmark: Bookmark) -> AdapterState | None:
    """Return what another call has made of a claimed adapter; None when it is still to be trained.

    Args:
        before: its bookmark when this call began.
        bookmark: its bookmark now. A failure that is new is not repeated.
    """
    found = target.judge()
    if found.state is State.BROKEN:
        target.folder.set_aside(State.BROKEN)
        return None
    if found.state is State.PENDING:
        if bookmark != before and bookmark.status is State.FAILED:
            return AdapterState(State.FAILED, f"{bookmark.error} ({ELSEWHERE})")
        return None
    reason = f", {found.reason}" if found.reason else ""
    return AdapterState(found.state, f"{found.state}: trained {ELSEWHERE}{reason}")
