"""Training one artist: run the script, and see to what it has left."""

from contextlib import nullcontext

from mimicry.common.children import Interrupted, has_parent
from mimicry.common.claims import Claim
from mimicry.common.errors import AdapterBroken, TrainingFailed, disk_fault
from mimicry.common.files import set_aside, utc_now
from mimicry.tuning.execution.outcome import Attempt
from mimicry.tuning.hf_diffusers.artist_job import FOREIGN_OUTPUT, ArtistJob
from mimicry.tuning.hf_diffusers.outcome import publish_foreign, record_bytes, record_end
from mimicry.tuning.hf_diffusers.script_run import run_script
from mimicry.tuning.hf_diffusers.study_tracker import tracker_told

_SHOWN_LOG_LINES = 20


def train_artist(job: ArtistJob, claim: Claim | None = None) -> None:
    """Train the artist; when this returns, a verified adapter lies in the output folder.

    However it ends, the tracker of the study is told, unless apply_tuning does that.

    Args:
        claim: that of the output folder, which the trainer joins.

    Raises:
        TrainingFailed: there is no adapter; the message says why and where the log is.
        Interrupted: the trainer received a stop signal.
        ClaimLost: another process has taken the folder over.
    """
    with tracker_told(job):
        _train(job, claim)


def _train(job: ArtistJob, claim: Claim | None) -> None:
    attempt = Attempt.begin(job.folder)
    # What a stopped script has left must not be taken for the result of this one. Our own trainer checks its
    # checkpoints itself.
    others = [] if job.script.is_own else job.folder.checkpoint_names()
    set_aside(job.inputs.output_dir, [FOREIGN_OUTPUT, *others], "unfinished")
    started_at, former_record = utc_now(), record_bytes(job)
    images = [] if job.script.is_own else job.inputs.read_images(job.config.hold_out).records()
    try:
        code = run_script(job, {} if claim is None else claim.variable())
        if not job.script.is_own:
            with nullcontext() if claim is None else claim.fenced():
                publish_foreign(job, started_at, images)
    except AdapterBroken as error:
        raise TrainingFailed(*error.problems) from error
    except OSError as error:
        raise TrainingFailed(disk_fault(error) or f"{job.inputs.output_dir}: {error.strerror}") from error
    if claim is not None:
        claim.check()
    failure = attempt.failure(code)
    if failure is None:
        return
    stopped_by = attempt.stopped_by()
    if job.script.is_own:
        record_end(job, former_record, failure, stopped=stopped_by is not None)
    if stopped_by is not None:
        raise Interrupted(stopped_by)
    raise TrainingFailed(failure + _log_excerpt(job, attempt))


def _log_excerpt(job: ArtistJob, attempt: Attempt) -> str:
    if has_parent():  # which shows them itself, and whose log this goes to
        return ""
    lines = [f"  | {line}" for line in attempt.log_lines(_SHOWN_LOG_LINES)]
    return "\n".join(["", f"  the last lines of {job.folder.log}:", *lines])
