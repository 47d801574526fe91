"""What lies in an adapter's folder already, compared with what is asked for.

Reading every value of an adapter takes a moment, and there are hundreds of them: one that was found good is
remembered by the identities of its weights and of their record.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.file_memory import FileMemory
from mimicry.common.files import FileIdentity, file_identity
from mimicry.study.captions import Captions, image_records, record_differences
from mimicry.study.images import ImageFolder
from mimicry.tuning.adapters.folder import (
    TRAINING_RUN,
    WEIGHTS,
    check_adapter,
    check_header,
    check_unrecorded,
    read_training_run,
    recorded_rank,
    run_weights_sha256,
)
from mimicry.tuning.adapters.recipe import recipe, recipe_differences
from mimicry.tuning.base_model import BaseModel
from mimicry.tuning.class_images import ClassImages
from mimicry.tuning.options.config import TuningConfig


class State(Enum):
    """What an adapter's folder holds."""

    ABSENT = "absent"
    BROKEN = "broken"
    STALE = "stale"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Existing:
    """A state, and the reason for it in words; for a stale adapter, in what it differs."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class Asked:
    """What is asked of an adapter.

    `rank` and `recipe` are None when the stack takes no options, `class_images` when none are asked for.
    """

    rank: int | None
    recipe: Mapping[str, Any] | None
    class_images: ClassImages | None = None

    @classmethod
    def of(cls, config: TuningConfig, trainer: str) -> "Asked":
        """Return what `config` asks for; reads the base model's files, not its values."""
        return cls(config.rank, recipe(config, BaseModel.find(config), trainer), ClassImages.of(config))


def judge_existing(
    output_dir: Path,
    asked: Asked,
    images: ImageFolder,
    *,
    captions: Captions | None = None,
    full: bool,
    anew: bool = False,
) -> Existing:
    """Compare what lies in `output_dir` with what is asked for.

    Args:
        images: the folder it would be trained on now; names and sizes are compared, with `full` contents.
        captions: those of `images`; None where none are asked for.
        full: read every value of the weights as well, unless it is remembered that they are good; otherwise
            header, sizes and training_run.json only.
        anew: with `full`, read them whatever is remembered.
    """
    if not (output_dir / WEIGHTS).exists():
        return Existing(State.ABSENT)
    try:
        run = read_training_run(output_dir)
        _check(output_dir, run, asked, full=full, anew=anew)
    except AdapterBroken as error:
        return Existing(State.BROKEN, str(error))
    differences = [] if run is None else _differences(run, asked, images, captions, full=full)
    if differences:
        return Existing(State.STALE, ", ".join(differences))
    return Existing(State.COMPLETE, "" if run is not None else "made by another tool")


def weights_identity(output_dir: Path) -> FileIdentity:
    """Return what tells the weights in `output_dir` from those that another training puts there."""
    return file_identity(output_dir / WEIGHTS)


def _check(output_dir: Path, run: Mapping[str, Any] | None, asked: Asked, *, full: bool, anew: bool) -> None:
    # An adapter of ours must have the rank of its own record: another than asked for is stale, not broken.
    rank = asked.rank if run is None else recorded_rank(run)
    if run is None:
        check_unrecorded(output_dir, rank)
    if full:
        _check_values(output_dir, run, rank, anew=anew)
    elif run is not None:
        check_header(output_dir / WEIGHTS, rank)
        if run_weights_sha256(run) is None:
            raise AdapterBroken(f"{output_dir / TRAINING_RUN} is about a training that did not end")


def _check_values(output_dir: Path, run: Mapping[str, Any] | None, rank: int | None, *, anew: bool) -> None:
    memory = FileMemory("adapters", output_dir)
    facts = _facts(output_dir, run, rank)
    if not anew and memory.knows(WEIGHTS, facts):
        return
    try:
        check_adapter(output_dir, rank)
        # One that was changed meanwhile is not remembered.
        if _facts(output_dir, run, rank) == facts:
            memory.keep(WEIGHTS, facts)
    finally:
        # One that is broken is forgotten.
        memory.save()


def _facts(output_dir: Path, run: Mapping[str, Any] | None, rank: int | None) -> list[Any]:
    """Return what an adapter that was found good is remembered by; in lists, as JSON gives them back."""
    identities = [file_identity(output_dir / name) for name in (WEIGHTS, TRAINING_RUN)]
    sha256 = None if run is None else run_weights_sha256(run)
    return [rank, sha256, *(None if identity is None else list(identity) for identity in identities)]


def _differences(
    run: Mapping[str, Any], asked: Asked, images: ImageFolder, captions: Captions | None, *, full: bool
) -> list[str]:
    words = []
    recorded = run.get("recipe")
    if asked.recipe is not None and isinstance(recorded, dict):
        words += recipe_differences(recorded, asked.recipe)
    known = run.get("images")
    if isinstance(known, list):
        try:
            words += record_differences(known, image_records(images, captions, hashed=full))
        except OSError:
            words.append("other images")
    if asked.class_images is not None and _other_class_images(run, asked.class_images, full=full):
        words.append("other class images")
    return words


def _other_class_images(run: Mapping[str, Any], asked: ClassImages, *, full: bool) -> bool:
    known = run.get("class_images")
    # Those that are to be generated are known to nobody yet.
    if not isinstance(known, dict) or asked.missing():
        return False
    try:
        if full:
            return known != asked.record()
        return bool(known.get("listing_sha256") != asked.listing_sha256())
    except OSError:
        return True
