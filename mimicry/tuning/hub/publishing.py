"""Uploading a complete adapter, and keeping in its training_run.json where it went or what is owed."""

from dataclasses import asdict

from mimicry.common.errors import UploadFailed
from mimicry.common.files import utc_now, write_json
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.hub.upload import Uploaded, UploadJob, upload_adapter


def upload_and_record(job: UploadJob) -> Uploaded:
    """Upload the adapter of `job` and note the result under `hub` in its training_run.json.

    Raises:
        UploadFailed: it did not get there; the note says what is owed, and why.
    """
    try:
        uploaded = upload_adapter(job)
    except UploadFailed as error:
        _record(job, {"owed": job.repository, "error": str(error)})
        raise
    _record(job, asdict(uploaded) | {"uploaded_at": utc_now()})
    return uploaded


def _record(job: UploadJob, hub: dict[str, str]) -> None:
    folder = AdapterFolder(job.folder)
    if folder.run is not None:
        write_json(folder.record, {**folder.run.content, "hub": hub})
