"""Uploads with faults: transient ones, others, and repositories that hold something else."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import MimicryError, UploadFailed
from mimicry.tuning.hub.child import explain
from mimicry.tuning.hub.client import upload
from mimicry.tuning.hub.upload import Upload, Uploaded
from tests.fake_hub import CUT, CUT_AFTER, Answer, FakeHub, Repository
from tests.tuning.hub.test_client import FILES, NAME
from tests.tuning.hub.test_files import job, write_adapter

BUSY = Answer({"error": "try again"}, 503)
LIMITED = Answer({"error": "slow down"}, 429, {"Retry-After": "0"})
PLACE = {"split": "historical", "style": "baroque"}
WAITS = (0, 0)

pytestmark = [
    pytest.mark.usefixtures("hub_client_here"),
    # The client's use of its HTTP library is not ours to change.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def adapter(tmp_path: Path, name: str = "adapter", **run: Any) -> Path:
    """Write an adapter; `run` changes its training_run.json."""
    folder = write_adapter(tmp_path / name)
    path = folder / "training_run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | run))
    return folder


def images(*hashes: str) -> list[dict[str, Any]]:
    return [{"name": f"{number}.jpg", "size": 9, "sha256": text} for number, text in enumerate(hashes)]


def upload_adapter(job: Upload, waits: Sequence[float]) -> Uploaded:
    """Do what the child does, in this process: a child for each test would take a second."""
    try:
        return Uploaded(**upload({**asdict(job), "folder": str(job.folder), "waits": waits}))
    except MimicryError as error:
        raise UploadFailed(*error.problems) from error
    except Exception as error:
        raise UploadFailed(explain(error, job.namespace)) from error


def count(fake: FakeHub, path: str) -> int:
    return sum(request.path.endswith(path) for request in fake.requests)


# Transient faults


@pytest.mark.parametrize("fault", [BUSY, LIMITED, CUT, CUT_AFTER], ids=["503", "429", "cut", "cut after"])
def test_transient_faults_are_retried(fake_hub: FakeHub, tmp_path: Path, fault: Answer) -> None:
    """At every request that the client does not repeat by itself."""
    for stage in ("whoami", "create", "info", "validate", "commit"):
        fake_hub.transient[stage] = [fault]
    uploaded = upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    repository = fake_hub.repositories[f"lab/{NAME}"]
    assert fake_hub.transient == {stage: [] for stage in fake_hub.transient}
    # The answer to the first commit may be lost: it is found, and not made again.
    assert repository.commits == [FILES]
    assert uploaded.commit == repository.head
    assert repository.private


def test_a_cut_transfer_is_continued_by_the_client(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.transient["put"] = [CUT]
    upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [FILES]


def test_the_weights_are_not_sent_again_after_a_failed_commit(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.faults["commit"] = BUSY
    folder = adapter(tmp_path)
    with pytest.raises(UploadFailed, match="answered with status 503"):
        upload_adapter(job(folder), waits=WAITS)
    assert count(fake_hub, "/commit/main") == 1 + len(WAITS)
    del fake_hub.faults["commit"]
    upload_adapter(job(folder), waits=WAITS)
    assert [request.method for request in fake_hub.requests].count("PUT") == 1
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [FILES]


def test_a_commit_in_between_becomes_the_parent(fake_hub: FakeHub, tmp_path: Path) -> None:
    def somebody_commits() -> None:
        fake_hub.before.clear()
        fake_hub.repositories[f"lab/{NAME}"].commits.append(["LICENSE"])

    fake_hub.before["validate"] = somebody_commits
    upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [["LICENSE"], FILES]


@pytest.mark.parametrize(
    ("stage", "answer", "words"),
    [
        ("whoami", Answer({"error": "Invalid username or password."}, 401), "wrong, revoked or expired"),
        ("commit", Answer({"error": "you may only read"}, 403), "may not write"),
        ("create", Answer({"error": "slow down"}, 429), "accepts no more requests for now"),
    ],
)
def test_other_faults_are_reported(
    fake_hub: FakeHub, tmp_path: Path, stage: str, answer: Answer, words: str
) -> None:
    fake_hub.faults[stage] = answer
    with pytest.raises(UploadFailed, match=words) as caught:
        upload_adapter(job(adapter(tmp_path)), waits=())
    assert "\n" not in str(caught.value)


# Privacy, from the creation to the end


def test_a_repository_that_turns_public_during_the_transfer_gets_no_commit(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    def publish() -> None:
        fake_hub.repositories[f"lab/{NAME}"].private = False

    fake_hub.before["put"] = publish
    with pytest.raises(UploadFailed, match="is not private, and nothing was sent"):
        upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    assert fake_hub.repositories[f"lab/{NAME}"].commits == []


def test_a_repository_that_is_replaced_before_the_commit_gets_none(fake_hub: FakeHub, tmp_path: Path) -> None:
    def replace() -> None:
        fake_hub.repositories[f"lab/{NAME}"] = Repository(private=False, commits=[["README.md"]])

    fake_hub.before["validate"] = replace
    with pytest.raises(UploadFailed, match="is not private"):
        upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [["README.md"]]


def test_a_repository_that_is_public_in_the_end_is_reported(fake_hub: FakeHub, tmp_path: Path) -> None:
    def publish() -> None:
        repository = fake_hub.repositories[f"lab/{NAME}"]
        repository.private = not repository.commits

    fake_hub.before["info"] = publish
    with pytest.raises(UploadFailed, match="was private when the adapter was sent, and is not any more"):
        upload_adapter(job(adapter(tmp_path)), waits=WAITS)


# Repositories that exist already


def test_the_adapter_of_another_artist_is_not_overwritten(fake_hub: FakeHub, tmp_path: Path) -> None:
    upload_adapter(job(adapter(tmp_path, images=images("aa")), **PLACE), waits=WAITS)
    before = dict(fake_hub.repositories[f"lab/{NAME}"].files)
    other = adapter(tmp_path, "other", images=images("bb"))
    with pytest.raises(
        UploadFailed, match="holds the adapter of mist/none/historical/baroque/Anna"
    ) as caught:
        upload_adapter(job(other, split="contemporary", style="pop"), waits=WAITS)
    assert "rename one of the artists' folders" in str(caught.value)
    assert fake_hub.repositories[f"lab/{NAME}"].files == before
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [FILES]


@pytest.mark.parametrize(
    ("place", "hashes"),
    [(PLACE, ["cc"]), ({"split": "historical", "style": "rococo"}, ["aa", "dd"])],
    ids=["other images", "a folder that was renamed"],
)
def test_an_earlier_adapter_of_the_same_artist_is_replaced(
    fake_hub: FakeHub, tmp_path: Path, place: dict[str, str], hashes: list[str]
) -> None:
    upload_adapter(job(adapter(tmp_path, images=images("aa", "bb")), **PLACE), waits=WAITS)
    upload_adapter(job(adapter(tmp_path, images=images(*hashes), seconds=2), **place), waits=WAITS)
    assert len(fake_hub.repositories[f"lab/{NAME}"].commits) == 2


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"x"}, "without a training_run.json"),
        ({"training_run.json": b"[1"}, "without a training_run.json"),
        ({"training_run.json": b'{"images": [{"sha256": "ee"}]}'}, "trained on other images"),
        ({"training_run.json": b'{"images": 7, "made_for": 7}'}, "trained on other images"),
    ],
)
def test_a_repository_of_something_else_gets_nothing(
    fake_hub: FakeHub, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    fake_hub.repositories[f"lab/{NAME}"] = Repository(private=True, files=files)
    with pytest.raises(UploadFailed, match=f"{words}.*, and nothing was sent"):
        upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    assert fake_hub.repositories[f"lab/{NAME}"].commits == []


def test_a_readme_alone_is_not_an_adapter(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories[f"lab/{NAME}"] = Repository(private=True, files={"README.md": b"soon"})
    upload_adapter(job(adapter(tmp_path)), waits=WAITS)
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [FILES]


def test_a_name_that_is_taken_by_another_type(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.taken.add(f"lab/{NAME}")
    with pytest.raises(UploadFailed, match="taken on the Hub by something that is not a model"):
        upload_adapter(job(adapter(tmp_path)), waits=WAITS)


def test_a_repository_that_was_renamed(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories[f"lab/{NAME}"] = Repository(private=True, renamed_to="lab/precious")
    with pytest.raises(UploadFailed, match="was renamed and now leads to lab/precious"):
        upload_adapter(job(adapter(tmp_path)), waits=WAITS)


def test_weights_that_do_not_match_the_record_are_not_sent(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = adapter(tmp_path, weights={"sha256": "0" * 64})
    with pytest.raises(UploadFailed, match="is not the file whose sha256 is in"):
        upload_adapter(job(folder), waits=WAITS)
    assert fake_hub.requests == []
