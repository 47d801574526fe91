"""How a run begins, and how a later one goes on from its checkpoints."""

from collections.abc import Mapping
from dataclasses import replace

from safetensors import SafetensorError
from torch import Tensor

from mimicry.common.errors import TrainingFailed, disk_fault
from mimicry.common.files import set_aside, write_bytes
from mimicry.study import State
from mimicry.tuning.adapters import (
    SAMPLES,
    complete_options,
    describe_differences,
    numerics_differences,
    sister_differences,
)
from mimicry.tuning.adapters.training_run import LEFT_OUT
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint, Checkpoints, Stateful
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from mimicry.tuning.options.config import RESUME_LATEST, RESUME_NONE


def begin(record: RunRecord) -> None:
    """Set aside what is in the way, load the record of a run that is resumed, and say that we run.

    Raises:
        UsageError: the checkpoint that was asked for does not fit.
        TrainingFailed: the numerics differ from those of sister adapters, and must not.
    """
    record.resumed = record.runtime.processes.broadcast_from_main(lambda: _clear_way(record))
    if record.resumed is not None:
        _go_on(record, record.resumed)
    elif record.writes:
        set_aside(record.output_dir, [SAMPLES], "unfinished")
        record.folder.metrics.write_bytes(b"")
    if record.writes:
        options = complete_options(record.trained.recipe) or {}
        record.reports.begin(record.output_dir, options, run_id=record.report_id, steps=record.steps)
    record.write(State.RUNNING)


def checkpoints_of(record: RunRecord) -> Checkpoints:
    """Return the checkpoints that lie in the folder, of this run or another."""
    trained = record.trained
    class_images = trained.class_images if record.generated is None else record.generated.class_images
    return Checkpoints(
        output_dir=record.output_dir,
        recipe=trained.recipe,
        images=trained.images,
        class_images=None if class_images is LEFT_OUT else class_images,
        limit=record.config.checkpoints_total_limit,
    )


def save_checkpoint(
    record: RunRecord, parameters: Mapping[str, Tensor], parts: Mapping[str, Stateful]
) -> None:
    """Write a checkpoint of the present step; one that cannot be written is a warning."""
    if not record.steps or not record.writes:
        return
    record.check_claim()
    facts = {
        "recipe_hash": record.trained.recipe_hash,
        "numerics": record.numerics.numerics,
        "draws": record.history.draws_hash,
        "loss_spikes": record.history.loss_spikes,
        "report_id": record.report_id,
        "started_at": record.started_at,
        "seconds": record.seconds(),
    }
    try:
        with record.stage("save"):
            checkpoints_of(record).save(record.steps, parameters, parts, facts)
    except (OSError, SafetensorError) as error:
        reason = disk_fault(error) or str(getattr(error, "strerror", None) or error)
        record.warn(f"checkpoint-{record.steps} could not be written: {reason}")
    else:
        say(f"checkpoint-{record.steps} is there")


def _clear_way(record: RunRecord) -> Checkpoint | None:
    complete = record.folder.has_weights
    _compare_sisters(record, complete)
    # Where an adapter is complete, it is to be trained anew, not from what its training has left.
    latest = record.config.resume_from_checkpoint == RESUME_LATEST
    wanted = RESUME_NONE if complete and latest else record.config.resume_from_checkpoint
    checkpoints = checkpoints_of(record)
    resumed, unused = checkpoints.choose(wanted)
    record.output_dir.mkdir(parents=True, exist_ok=True)
    checkpoints.clear_way(unused)
    for name, reason in unused.items():
        record.warn(f"not resumed from {name}: {reason}; it is set aside")
    if complete:
        aside = record.folder.set_aside("replaced")
        if aside is not None and resumed is not None and not resumed.folder.exists():
            resumed = replace(resumed, folder=aside / resumed.folder.name)
    return resumed


def _compare_sisters(record: RunRecord, complete: bool) -> None:
    """Warn where the artist's other adapters were made by other numerics, or refuse to train."""
    numerics = record.numerics
    found = sister_differences(record.output_dir, record.trained.recipe, numerics.numerics)
    numerics.other_numerics = found
    if not found:
        return
    if not record.config.require_same_numerics:
        record.warn(describe_differences(found))
        return
    problem = (
        f"{describe_differences(found)}, and --require-same-numerics is given; train this one as those "
        f"were, those again with --overwrite, or leave it out"
    )
    if not complete:
        record.output_dir.mkdir(parents=True, exist_ok=True)
        record.write(State.BLOCKED, problem)
    raise TrainingFailed(problem)


def _go_on(record: RunRecord, checkpoint: Checkpoint) -> None:
    metrics = checkpoint.metrics()
    if record.writes:
        write_bytes(record.folder.metrics, metrics)
    record.history.restore(metrics, checkpoint.facts)
    record.started_at = checkpoint.facts.get("started_at", record.started_at)
    record.earlier_seconds = checkpoint.facts.get("seconds", 0.0)
    say(f"resuming after step {record.steps}")
    changed = numerics_differences(checkpoint.facts["numerics"], record.numerics.numerics)
    if changed:
        record.warn(f"resumed with other numerics, so the last bits may differ: {', '.join(changed)}")
