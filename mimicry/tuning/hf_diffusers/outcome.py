"""What a training has left: weights of another script are published, an end without a record is recorded."""

import shutil
from contextlib import suppress

from mimicry.common.files import utc_now, write_json
from mimicry.common.scrubbing import scrub
from mimicry.study import ImageRecord, State
from mimicry.study.image_checks import refuse_changed_images
from mimicry.study.image_sets import described_images
from mimicry.tuning.adapters import WEIGHTS, AdapterFolder
from mimicry.tuning.hf_diffusers.artist_job import ArtistJob
from mimicry.tuning.hf_diffusers.base_model import BaseModel
from mimicry.tuning.hf_diffusers.preflight import class_images_of
from mimicry.tuning.hf_diffusers.run_description import describe_run


def publish_foreign(job: ArtistJob, started_at: str, images: list[ImageRecord]) -> None:
    """Move what the script has saved to its final place, with the records that it lacks.

    Our own trainer checks by itself that its images were not changed meanwhile.
    """
    saved = job.trainer_output_dir / WEIGHTS
    if not saved.exists():
        return
    refuse_changed_images(job.inputs.read_images(job.config.hold_out), images)
    record = describe_run(
        job.config,
        BaseModel.resolve(job.config),
        trainer=job.script.identity,
        command=job.command(),
        notes=(*job.inputs.notes, *job.script.warnings(job.config)),
    )
    record["paths"] |= {
        "instance_data_dir": str(job.inputs.input_dir),
        "output_dir": str(job.inputs.output_dir),
    }
    described, marks = described_images(
        job.inputs.read_pairing(job.config.hold_out), None, job.config.reading
    )
    record |= {
        "images": described,
        "unpaired": marks,
        "status": State.COMPLETE,
        "started_at": started_at,
        "finished_at": utc_now(),
        "steps": job.step_count,
        "eval_loss": {"skipped": f"{job.script.path.name} makes no evaluation"},
    }
    class_images = class_images_of(job.config)
    if class_images is not None and not class_images.missing():
        record["class_images"] = class_images.record()
    job.folder.publish(saved, record, job.config.pretrained_model_name_or_path)
    shutil.rmtree(job.trainer_output_dir)


def record_end(job: ArtistJob, former_record: bytes, error: str, *, stopped: bool) -> None:
    """Write how the training ended, unless the trainer has: it may have been killed, or may not have begun.

    Args:
        former_record: the record that was there before.
        stopped: by a signal.
    """
    folder = AdapterFolder(job.inputs.output_dir)
    run = folder.readable_run
    if record_bytes(job) != former_record and run.status != State.RUNNING:
        return
    state = State.INTERRUPTED if stopped else State.FAILED
    ended = {"status": state, "error": scrub(error), "finished_at": utc_now()}
    # On a full disk there is no room for it, which the caller reports.
    with suppress(OSError):
        write_json(folder.record, {**run.content, **ended})


def record_bytes(job: ArtistJob) -> bytes:
    """Return the record of the artist's training as it is now; nothing when there is none."""
    try:
        return job.folder.record.read_bytes()
    except OSError:
        return b""
