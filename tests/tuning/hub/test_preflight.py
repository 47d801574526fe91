"""What is known of uploads before anything is trained."""

import re
from pathlib import Path
from typing import Any

import pytest
from mimicry.tuning.hub.client import account_problems, check

from mimicry.tuning.hub.upload import MADE_FOR, Upload, hub_problems
from tests.fake_hub import TOKEN, Answer, FakeHub, Repository
from tests.small_study import write_images

PREFIX = "sd35-lora-none-none-"


def job(name: str, **changes: Any) -> Upload:
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
        assert checked(job("Anna"), job("Boris")) == []
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
        public, other = checked(*map(job, names), input_dir=tmp_path / "images")
        assert f"{PREFIX}Anna is not private" in public
        assert f"{PREFIX}Boris holds files of something else" in other

    def test_a_token_that_may_not_write_ends_the_check(self, fake_hub: FakeHub) -> None:
        fake_hub.account["auth"] = {"accessToken": {"role": "read"}}
        (problem,) = checked(job("Anna"), job("Boris"))
        assert "may only read" in problem
        assert len(fake_hub.requests) == 1

    def test_owners_in_names_and_options(self, fake_hub: FakeHub) -> None:
        fake_hub.repositories["institute/x"] = Repository(private=False)
        assert "institute/x is not private" in checked(job("Anna", repository="institute/x"))[0]
        assert "elsewhere" in checked(job("Anna", namespace="elsewhere"))[0]


class TestChild:
    def test_a_good_token(self, fake_hub: FakeHub) -> None:
        assert hub_problems([(job("Anna"), Path("nowhere"))]) == []

    def test_an_expired_token(self, fake_hub: FakeHub) -> None:
        fake_hub.faults["whoami"] = Answer({"error": f"{TOKEN} has expired"}, 401)
        (problem,) = hub_problems([(job("Anna"), Path("nowhere"))], waits=())
        assert "wrong, revoked or expired" in problem
        assert "--no-push-to-hub" in problem
        assert TOKEN not in problem

    def test_no_network(self, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        (problem,) = hub_problems([(job("Anna"), Path("nowhere"))], waits=())
        assert "check the network" in problem
        assert "upload later with mimicry upload" in problem

    def test_offline_by_choice(self, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        (problem,) = hub_problems([(job("Anna"), Path("nowhere"))])
        assert "HF_HUB_OFFLINE forbids requests to the Hub; unset it" in problem
        assert fake_hub.requests == []

    def test_no_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        (problem,) = hub_problems([(job("Anna"), Path("nowhere"))])
        assert "HF_TOKEN is not set" in problem
