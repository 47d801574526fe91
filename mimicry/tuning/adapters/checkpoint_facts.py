"""Checkpoints as files: what one belongs to, and from which one a training goes on. No torch.

checkpoint-{step}/checkpoint.json holds step, recipe, images, class images and sha256s of the other files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from mimicry.common.errors import UsageError
from mimicry.common.files import read_json, sha256_file
from mimicry.common.text import first_few
from mimicry.tuning.adapters.folder import CHECKPOINT_FACTS, METRICS, AdapterFolder
from mimicry.tuning.adapters.recipe import complete_options, recipe_differences
from mimicry.tuning.options.config import RESUME_LATEST, RESUME_NONE

ADAPTER = "adapter.safetensors"
STATE = "state.safetensors"
SCHEMA = 1
PARTS = (ADAPTER, STATE, METRICS)


class NotWholeError(Exception):
    """A folder named like a checkpoint is not one, or is damaged."""


@dataclass(frozen=True)
class CheckpointFacts:
    """A whole checkpoint, and what stands in its checkpoint.json."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        step: int = self.facts["step"]
        return step

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the checkpoint in `folder`; NotWholeError where a file is not the one that was written."""
        return cls._read(folder, lambda path, sha256: sha256_file(path) == sha256)

    @classmethod
    def glance(cls, folder: Path) -> Self:
        """Read the checkpoint in `folder`, without the values of its tensors, or raise NotWholeError."""
        return cls._read(folder, lambda path, _: path.stat().st_size > 0)

    @classmethod
    def _read(cls, folder: Path, is_good: Callable[[Path, str], bool]) -> Self:
        try:
            facts = read_json(folder / CHECKPOINT_FACTS)
            if facts["schema"] != SCHEMA:
                raise NotWholeError("it was written by another version")
            int(facts["step"])
            damaged = [name for name in PARTS if not is_good(folder / name, facts["sha256"][name])]
        except OSError as error:
            # Its text names the path, and this becomes a warning in a file that is published.
            raise NotWholeError(f"it is not whole: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NotWholeError(f"it is not whole: {type(error).__name__} in {CHECKPOINT_FACTS}") from error
        if damaged:
            raise NotWholeError(f"it is not whole: {', '.join(damaged)} is damaged")
        return cls(folder, facts)

    def other_run(self, recipe: Mapping[str, Any], data_differences: Sequence[str]) -> str:
        """Say why it belongs to another run than that of `recipe`; empty when it does not."""
        recorded = self.facts["recipe"]
        words = recipe_differences(recorded, recipe)
        # A new option counts as its default. One that is gone may have meant anything.
        gone = recorded["options"].keys() - (complete_options(recipe) or {}).keys()
        if gone:
            words.append(f"options of another version: {first_few(sorted(gone))}")
        words += data_differences
        return f"it belongs to another run: {', '.join(words)}" if words else ""


Chosen = TypeVar("Chosen", bound=CheckpointFacts)


def choose_checkpoint(
    folder: AdapterFolder,
    wanted: str,
    read: Callable[[Path], Chosen],
    difference: Callable[[Chosen], str],
) -> tuple[Chosen | None, dict[str, str]]:
    """Return the checkpoint to go on from, and why those in its way are not used, by name.

    Args:
        wanted: `RESUME_LATEST`, `RESUME_NONE`, or the path or name of a checkpoint: UsageError if it is bad.
        difference: says why a checkpoint does not fit; empty for one that does.
    """
    names = folder.checkpoint_names()
    if wanted == RESUME_NONE:
        return None, dict.fromkeys(names, "a new beginning was asked for")
    if wanted != RESUME_LATEST:
        chosen = _asked_for(folder, wanted, read, difference)
        newer = [name for name in names if int(name.rpartition("-")[2]) > chosen.step]
        return chosen, dict.fromkeys(newer, f"step {chosen.step} was asked for")
    unused: dict[str, str] = {}
    for name in names:
        checkpoint, reason = _fitting(folder.path / name, read, difference)
        if checkpoint is not None:
            return checkpoint, unused
        unused[name] = reason
    return None, unused


def _fitting(
    path: Path, read: Callable[[Path], Chosen], difference: Callable[[Chosen], str]
) -> tuple[Chosen | None, str]:
    try:
        checkpoint = read(path)
        reason = difference(checkpoint)
    except NotWholeError as error:
        return None, str(error)
    return (None, reason) if reason else (checkpoint, "")


def _asked_for(
    adapter: AdapterFolder, wanted: str, read: Callable[[Path], Chosen], difference: Callable[[Chosen], str]
) -> Chosen:
    # By its name alone, as the diffusers example has it, or by its path.
    folder = next((path for path in (Path(wanted), adapter.path / wanted) if path.is_dir()), None)
    reason = "there is no such folder"
    if folder is not None:
        checkpoint, reason = _fitting(folder, read, difference)
        if checkpoint is not None:
            return checkpoint
    known = ", ".join(adapter.checkpoint_names()) or "none"
    raise UsageError(
        f"--resume-from-checkpoint {wanted}: {reason}; type {RESUME_LATEST}, {RESUME_NONE} or the path "
        f"of a checkpoint of this adapter (in its folder: {known})"
    )
