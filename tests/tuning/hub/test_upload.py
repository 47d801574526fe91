"""What is asked before a training, and what training_run.json says after an upload."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mimicry.common.errors import AdapterBroken, UploadFailed
from mimicry.common.files import read_json, write_json
from mimicry.tuning.adapters import TRAINING_RUN
from mimicry.tuning.hub import upload as upload_module
from mimicry.tuning.hub.client import account_problems, check
from mimicry.tuning.hub.upload import MADE_FOR, Upload, Uploaded, hub_problems, upload_and_record
from tests.fake_hub import TOKEN, Answer, FakeHub, Repository
from tests.small_study import write_images

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


PREFIX = "sd35-lora-none-none-"


def upload_of(name: str, **changes: Any) -> Upload:
    place = {"protection": "none", "countermeasure": "none", "split": "historical", "style": "baroque"}
    values: dict[str, Any] = place | {"folder": Path("out"), "repository": PREFIX + name, "artist": name}
    return Upload(**values | changes)


def checked(*jobs: Upload, input_dir: Path = Path("nowhere")) -> list[str]:
    """Do what the child does, in this process."""
    words = [{"repository": j.repository, MADE_FOR: j.made_for, "input_dir": str(input_dir)} for j in jobs]
    return check({"namespace": jobs[0].namespace, "jobs": words, "waits": ()})


class TestAccount:
    def account(self, role: str | None = None, rights: dict[str, Any] | None = None) -> dict[str, Any]:
        token = {"role": role, "fineGrained": rights}
        orgs = [{"name": "institute", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}]
        return {"name": "lab", "orgs": orgs, "auth": {"accessToken": token}}

    @pytest.mark.parametrize("owner", ["lab", "institute"])
    def test_may_write(self, owner: str) -> None:
        rights = {"scoped": [{"entity": {"name": owner}, "permissions": ["repo.write"]}]}
        assert account_problems(self.account("write"), owner) == []
        assert account_problems(self.account("fineGrained", rights), owner) == []
        assert account_problems({"name": owner}, owner) == []

    @pytest.mark.parametrize(
        ("role", "owner", "words"),
        [
            ("read", "lab", "may only read"),
            ("write", "elsewhere", "--hub-namespace elsewhere: .* lab, institute, museum only"),
            ("write", "museum", "lab may only read there"),
        ],
    )
    def test_may_not(self, role: str, owner: str, words: str) -> None:
        (problem,) = account_problems(self.account(role), owner)
        assert re.search(words, problem)

    def test_a_fine_grained_token_for_somebody_else(self) -> None:
        rights = {
            "global": [],
            "scoped": [
                {"entity": {"name": "lab"}, "permissions": ["repo.content.read"]},
                {"entity": {"name": "museum"}, "permissions": ["repo.write"]},
            ],
        }
        (problem,) = account_problems(self.account("fineGrained", rights), "lab")
        assert "fine-grained and may not write to repositories of lab" in problem
        # A global right, or a list of an unknown kind, is not a reason to refuse.
        assert account_problems(self.account("fineGrained", rights | {"global": ["repo.write"]}), "lab") == []
        assert account_problems(self.account("fineGrained", {}), "lab") == []


@pytest.mark.usefixtures("hub_client_here")
class TestRepositories:
    def test_names_that_are_free(self, fake_hub: FakeHub) -> None:
        assert checked(upload_of("Anna"), upload_of("Boris")) == []
        assert [request.path for request in fake_hub.requests] == ["/api/whoami-v2", "/api/models"]
        assert fake_hub.repositories == {}

    def test_existing_repositories_are_checked_together(self, fake_hub: FakeHub, tmp_path: Path) -> None:
        images = write_images(tmp_path / "images")
        ours = b'{"images": [{"sha256": "%s"}]}' % images.records()[0]["sha256"].encode()
        fake_hub.repositories = {
            f"lab/{PREFIX}Anna": Repository(private=False),
            f"lab/{PREFIX}Boris": Repository(private=True, files={"x.safetensors": b""}),
            f"lab/{PREFIX}Clara": Repository(private=True, files={"training_run.json": ours}),
            f"lab/{PREFIX}Dora": Repository(private=True),
            f"lab/{PREFIX}Erik": Repository(private=True, renamed_to="lab/gone"),
        }
        names = ["Anna", "Boris", "Clara", "Dora", "Fred"]
        public, other = checked(*map(upload_of, names), input_dir=tmp_path / "images")
        assert f"{PREFIX}Anna is not private" in public
        assert f"{PREFIX}Boris holds files of something else" in other

    def test_a_token_that_may_not_write_ends_the_check(self, fake_hub: FakeHub) -> None:
        fake_hub.account["auth"] = {"accessToken": {"role": "read"}}
        (problem,) = checked(upload_of("Anna"), upload_of("Boris"))
        assert "may only read" in problem
        assert len(fake_hub.requests) == 1

    def test_owners_in_names_and_options(self, fake_hub: FakeHub) -> None:
        fake_hub.repositories["institute/x"] = Repository(private=False)
        assert "institute/x is not private" in checked(upload_of("Anna", repository="institute/x"))[0]
        assert "elsewhere" in checked(upload_of("Anna", namespace="elsewhere"))[0]


class TestChild:
    def test_a_good_token(self, fake_hub: FakeHub) -> None:
        assert hub_problems([(upload_of("Anna"), Path("nowhere"))]) == []

    def test_an_expired_token(self, fake_hub: FakeHub) -> None:
        fake_hub.faults["whoami"] = Answer({"error": f"{TOKEN} has expired"}, 401)
        (problem,) = hub_problems([(upload_of("Anna"), Path("nowhere"))], waits=())
        assert "wrong, revoked or expired" in problem
        assert "--no-push-to-hub" in problem
        assert TOKEN not in problem

    def test_no_network(self, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        (problem,) = hub_problems([(upload_of("Anna"), Path("nowhere"))], waits=())
        assert "check the network" in problem
        assert "upload later with mimicry upload" in problem

    def test_offline_by_choice(self, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        (problem,) = hub_problems([(upload_of("Anna"), Path("nowhere"))])
        assert "HF_HUB_OFFLINE forbids requests to the Hub; unset it" in problem
        assert fake_hub.requests == []

    def test_no_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        (problem,) = hub_problems([(upload_of("Anna"), Path("nowhere"))])
        assert "HF_TOKEN is not set" in problem
