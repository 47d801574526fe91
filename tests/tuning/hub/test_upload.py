"""After an upload, training_run.json says where the adapter went, or what is owed."""

import json
from pathlib import Path

import pytest

from mimicry.common.errors import AdapterBroken, UploadFailed
from mimicry.common.files import read_json, write_json
from mimicry.tuning.adapters import TRAINING_RUN
from mimicry.tuning.hub import upload as upload_module
from mimicry.tuning.hub.upload import Upload, Uploaded, upload_and_record

UPLOADED = Uploaded(repository_id="lab/x", url="https://huggingface.co/lab/x", commit="c" * 40)


@pytest.fixture
def job(tmp_path: Path) -> Upload:
    return Upload(
        folder=tmp_path, repository="x", protection="none", countermeasure="none", artist="Claude_Monet"
    )


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> list[Uploaded | UploadFailed]:
    """What the next upload ends in."""
    ends: list[Uploaded | UploadFailed] = []

    def fake_upload(job: Upload) -> Uploaded:
        end = ends.pop()
        if isinstance(end, UploadFailed):
            raise end
        return end

    monkeypatch.setattr(upload_module, "upload_adapter", fake_upload)
    return ends


def test_failure_then_success(job: Upload, upload: list[Uploaded | UploadFailed]) -> None:
    write_json(job.folder / TRAINING_RUN, {"status": "complete", "note": "é"})
    upload.append(UploadFailed("no space", "at the Hub"))
    with pytest.raises(UploadFailed, match="no space"):
        upload_and_record(job)
    owed = {"owed": "x", "error": "no space\nat the Hub"}
    assert read_json(job.folder / TRAINING_RUN) == {"status": "complete", "note": "é", "hub": owed}
    upload.append(UPLOADED)
    assert upload_and_record(job) == UPLOADED
    run = read_json(job.folder / TRAINING_RUN)
    assert run["hub"].pop("uploaded_at").endswith("+00:00")
    assert run == {
        "status": "complete",
        "note": "é",
        "hub": {"repository_id": "lab/x", "url": UPLOADED.url, "commit": "c" * 40},
    }


def test_an_adapter_without_a_record_gets_none(job: Upload, upload: list[Uploaded | UploadFailed]) -> None:
    upload.append(UPLOADED)
    assert upload_and_record(job) == UPLOADED
    assert list(job.folder.iterdir()) == []


def test_a_record_that_cannot_be_read_is_not_replaced(
    job: Upload, upload: list[Uploaded | UploadFailed]
) -> None:
    (job.folder / TRAINING_RUN).write_text("[1]")
    upload.append(UPLOADED)
    with pytest.raises(AdapterBroken):
        upload_and_record(job)
    assert json.loads((job.folder / TRAINING_RUN).read_text()) == [1]
