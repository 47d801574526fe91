"""Uploads by the real huggingface_hub client, in its child process, to a Hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import UploadFailed
from mimicry.common.processes import PARENT_PIPE
from mimicry.tuning.hub.upload import Uploaded, upload_adapter
from tests.fake_hub import TOKEN, Answer, FakeHub, Repository
from tests.tuning.hub.test_files import job, write_adapter

NAME = "sd35-lora-mist-none-Anna"
FILES = ["README.md", "adapter_config.json", "pytorch_lora_weights.safetensors", "training_run.json"]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The child processes that upload.py starts, in order."""
    started: list[subprocess.Popen[bytes]] = []
    real_popen = subprocess.Popen

    def recording_popen(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(real_popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recording_popen)
    return started


def assert_nothing_sent(fake: FakeHub) -> None:
    """No request carried a file, or a part of one."""
    asked = {request.path for request in fake.requests}
    assert asked == {"/api/whoami-v2", "/api/repos/create", f"/api/models/lab/{NAME}"}
    assert all(repository.files == {} for repository in fake.repositories.values())


def test_upload_creates_a_private_repository_with_the_final_files(
    fake_hub: FakeHub, tmp_path: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    folder = write_adapter(tmp_path / "an adapter")
    (folder / "train.log").write_text("not for the Hub")
    uploaded = upload_adapter(job(folder))
    repository = fake_hub.repositories[f"lab/{NAME}"]
    assert uploaded == Uploaded(
        repository_id=f"lab/{NAME}", url=f"{fake_hub.endpoint}/lab/{NAME}", commit=repository.head
    )
    assert repository.private
    assert repository.commits == [FILES]
    weights = (folder / "pytorch_lora_weights.safetensors").read_bytes()
    assert repository.files["pytorch_lora_weights.safetensors"] == weights
    assert json.loads(repository.files["training_run.json"])["options"]["rank"] == 16
    sent = b"".join(request.body for request in fake_hub.requests)
    assert not any(secret in sent for secret in (TOKEN.encode(), b"jane", str(tmp_path).encode()))
    assert TOKEN not in " ".join(children[0].args)  # type: ignore[arg-type]
    assert children[0].returncode == 0


def test_the_same_files_do_not_make_a_second_commit(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    first = upload_adapter(job(folder))
    run = json.loads((folder / "training_run.json").read_text())
    (folder / "training_run.json").write_text(json.dumps(run | {"hub": {"commit": first.commit}}))
    assert upload_adapter(job(folder)) == first
    assert fake_hub.repositories[f"lab/{NAME}"].commits == [FILES]


def test_namespace_goes_before_the_name(fake_hub: FakeHub, tmp_path: Path) -> None:
    upload_adapter(job(write_adapter(tmp_path / "adapter"), namespace="institute"))
    assert list(fake_hub.repositories) == [f"institute/{NAME}"]


@pytest.mark.parametrize("existed", [True, False])
def test_public_repository_gets_nothing(fake_hub: FakeHub, tmp_path: Path, existed: bool) -> None:
    fake_hub.creates_public = True
    if existed:
        fake_hub.repositories[f"lab/{NAME}"] = Repository(private=False)
    with pytest.raises(UploadFailed, match=f"lab/{NAME} is not private, and nothing was sent"):
        upload_adapter(job(write_adapter(tmp_path / "adapter")))
    assert_nothing_sent(fake_hub)


def test_repository_that_does_not_say_is_not_private(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.faults["info"] = Answer({"id": f"lab/{NAME}"})
    with pytest.raises(UploadFailed, match="is not private"):
        upload_adapter(job(write_adapter(tmp_path / "adapter")))
    assert_nothing_sent(fake_hub)


def test_wrong_token_says_where_to_get_one(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "hf_" + "WrongOne" * 4
    monkeypatch.setenv("HF_TOKEN", wrong)
    folder = write_adapter(tmp_path / "adapter")
    with pytest.raises(UploadFailed) as caught:
        upload_adapter(job(folder))
    message = str(caught.value)
    for words in ("HF_TOKEN", "https://huggingface.co/settings/tokens", "--no-push-to-hub", str(folder)):
        assert words in message
    assert wrong not in message
    assert fake_hub.repositories == {}


def test_token_in_an_answer_of_the_hub_is_scrubbed(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.faults["commit"] = Answer({"error": f"{TOKEN} may only read"}, 403)
    with pytest.raises(UploadFailed, match="may not write to institute") as caught:
        upload_adapter(job(write_adapter(tmp_path / "adapter"), namespace="institute"))
    assert "hf_*** may only read" in str(caught.value)
    assert TOKEN not in repr(caught.value)


def test_token_in_the_commit_of_the_hub_is_scrubbed(fake_hub: FakeHub, tmp_path: Path) -> None:
    url = f"{fake_hub.endpoint}/lab/{NAME}/commit/{TOKEN}"
    fake_hub.faults["commit"] = Answer({"commitUrl": url, "commitOid": TOKEN})
    assert upload_adapter(job(write_adapter(tmp_path / "adapter"))).commit == "hf_***"


@pytest.mark.parametrize(("stage", "status"), [("create", 500), ("put", 400)])
def test_other_errors_name_the_status(fake_hub: FakeHub, tmp_path: Path, stage: str, status: int) -> None:
    fake_hub.faults[stage] = Answer({"error": "no"}, status)
    with pytest.raises(UploadFailed, match=f"answered with status {status}"):
        upload_adapter(job(write_adapter(tmp_path / "adapter")), waits=(0, 0))
    assert [request.method for request in fake_hub.requests].count(
        "POST" if stage == "create" else "PUT"
    ) == (3 if stage == "create" else 1)


def test_hub_out_of_reach(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UploadFailed, match="check the network"):
        upload_adapter(job(write_adapter(tmp_path / "adapter")), waits=(0,))


def test_broken_adapter_never_reaches_the_hub(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", metadata={"note": "/home/jane"})
    with pytest.raises(UploadFailed, match="names a path of this machine"):
        upload_adapter(job(folder))
    assert fake_hub.requests == []


def test_missing_token_starts_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UploadFailed, match="HF_TOKEN is not set"):
        upload_adapter(job(tmp_path))
    assert children == []


def test_silent_upload_is_killed(
    fake_hub: FakeHub, tmp_path: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    fake_hub.hanging.add("put")
    # Long enough for the child to start on a busy machine.
    with pytest.raises(UploadFailed, match=f"no sign of life for 5 s while sending the files to lab/{NAME}"):
        upload_adapter(job(write_adapter(tmp_path / "adapter")), stall_seconds=5)
    assert fake_hub.hung.is_set()
    assert children[0].returncode == -9
    assert fake_hub.repositories[f"lab/{NAME}"].commits == []


def test_child_that_cannot_start_is_quoted(fake_hub: FakeHub, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\necho no such library, {TOKEN} >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(UploadFailed, match=r"ended while starting, saying: no such library, hf_\*\*\*"):
        upload_adapter(job(write_adapter(tmp_path / "adapter")), python=str(broken))


def test_child_ends_when_its_parent_is_gone(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.hanging.add("create")
    words = {
        "folder": str(write_adapter(tmp_path / "adapter")),
        "repository": NAME,
        "protection": "mist",
        "countermeasure": "none",
        "artist": "Anna",
    }
    environment = os.environ | {PARENT_PIPE: "1"}
    command = [sys.executable, "-m", "mimicry.tuning.hub.client", "upload"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as child:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(words).encode() + b"\n")
            child.stdin.flush()
            assert fake_hub.hung.wait(60)
            assert child.poll() is None
            child.stdin.close()
            assert child.wait(20) == 1
        finally:
            child.kill()
