"""What is refused before the first GPU second; the Hub is a socket on this machine."""

import dataclasses
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
from huggingface_hub import constants

from mimicry.tuning.hf_diffusers.spec.preflight import host_bytes, needed_bytes
from mimicry.tuning.hub import upload as hub_upload
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import StackTraits
from tests.small_study import write_images
from tests.tuning.companions import PRIOR
from tests.tuning.lora_files import batch_problems
from tests.tuning.model_files import make_cached_model, make_model


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def disk_with(monkeypatch: pytest.MonkeyPatch, free: float) -> list[Path]:
    asked: list[Path] = []

    def usage(path: Path) -> Disk:
        asked.append(path)
        return Disk(1 << 50, 0, int(free))

    monkeypatch.setattr("mimicry.tuning.planning.plan.shutil.disk_usage", usage)
    return asked


@pytest.fixture
def config(tmp_path: Path) -> TuningConfig:
    return TuningConfig(resolution=64, pretrained_model_name_or_path=str(make_model(tmp_path / "model")))


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_upload, "CHECK_WAITS", (0.0,))


class TestBatchProblems:
    def test_none(self, config: TuningConfig, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert batch_problems(config, tmp_path / "a" / "b", 1, uploads=False) == []
        assert sorted(tmp_path.rglob("*")) == before

    def test_all_at_once(self, config: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk_with(monkeypatch, free=10)
        config = TuningConfig(
            resolution=70, pretrained_model_name_or_path=config.pretrained_model_name_or_path
        )
        problems = batch_problems(config, tmp_path, 3, uploads=True)
        assert len(problems) == 3
        assert "HF_TOKEN is not set" in problems[0]
        assert "--no-push-to-hub" in problems[0]
        assert "type --resolution 64" in problems[1]
        assert "3 adapters need" in problems[2]

    def test_a_token_is_needed_for_uploads_only(
        self, config: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert len(batch_problems(config, tmp_path, 1, uploads=True)) == 1
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        assert batch_problems(config, tmp_path, 1, uploads=True) == []

    @pytest.mark.parametrize("installed", [False, True])
    def test_a_quantised_base_needs_its_library(
        self, installed: bool, config: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = ModuleSpec("bitsandbytes", None) if installed else None
        monkeypatch.setattr(importlib.util, "find_spec", {"bitsandbytes": found}.get)
        missing = (
            "--quantize-base nf4 needs bitsandbytes, which is not installed; type pip install bitsandbytes, "
            "or leave --quantize-base out"
        )
        quantised = dataclasses.replace(config, quantize_base="nf4")
        assert batch_problems(quantised, tmp_path, 1, uploads=False) == ([] if installed else [missing])
        assert batch_problems(config, tmp_path, 1, uploads=False) == []

    def test_a_stack_without_options_has_a_model_of_its_own(self, tmp_path: Path) -> None:
        assert batch_problems(None, tmp_path, 1, uploads=False) == []

    @pytest.mark.parametrize("name", ["/nowhere", "./model", "~/nowhere", "model", "a/b/c"])
    def test_a_folder_that_is_not_there(self, name: str, tmp_path: Path) -> None:
        config = TuningConfig(pretrained_model_name_or_path=name, cache_dir=str(tmp_path))
        (problem,) = batch_problems(config, tmp_path, 1, uploads=False)
        assert problem == f"--pretrained-model-name-or-path {name}: there is no such folder"


class TestClassImages:
    @pytest.fixture
    def prior(self, config: TuningConfig, tmp_path: Path) -> TuningConfig:
        folder = str(tmp_path / "class")
        return replace(config, **PRIOR | {"class_data_dir": folder, "num_class_images": 2})

    def problems(self, prior: TuningConfig, tmp_path: Path, **how: bool) -> list[str]:
        return batch_problems(prior, tmp_path / "out", 1, uploads=False, **how)

    def test_a_folder_that_is_still_to_be_made(self, prior: TuningConfig, tmp_path: Path) -> None:
        assert self.problems(prior, tmp_path) == []
        assert not (tmp_path / "class").exists()

    def test_an_unreadable_one_is_named(self, prior: TuningConfig, tmp_path: Path) -> None:
        write_images(tmp_path / "class", ["a", "b"])
        assert self.problems(prior, tmp_path) == []
        (tmp_path / "class" / "a.png").write_bytes(b"torn")
        (problem,) = self.problems(prior, tmp_path)
        assert f"{tmp_path / 'class' / 'a.png'} cannot be read as an image" in problem
        assert self.problems(prior, tmp_path, network=False) == []

    def test_a_folder_that_must_be_written(
        self, prior: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mimicry.tuning.planning.plan.os.access", lambda path, mode: path != tmp_path)
        (problem,) = (text for text in self.problems(prior, tmp_path) if "class" in text)
        assert "has too few images and is not writable" in problem
        write_images(tmp_path / "class", ["a", "b"])
        assert not [text for text in self.problems(prior, tmp_path) if "class" in text]

    def test_a_model_that_is_not_here_yet(self, prior: TuningConfig, tmp_path: Path) -> None:
        write_images(tmp_path / "class", ["a", "b"])
        (tmp_path / "class" / "class_images.json").write_text('{"prompt": "other"}')
        remote = replace(prior, pretrained_model_name_or_path="lab/not-here")
        assert self.problems(remote, tmp_path, network=False) == []
        assert len(self.problems(prior, tmp_path)) == 1


class TestDisk:
    def test_the_existing_part_of_the_path_is_asked(
        self, config: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = disk_with(monkeypatch, free=1e15)
        assert batch_problems(config, tmp_path / "not" / "yet", 1, uploads=False) == []
        monkeypatch.chdir(tmp_path)
        assert batch_problems(config, Path("not/yet"), 1, uploads=False) == []
        assert asked == [tmp_path, tmp_path]

    def test_the_room_grows_with_the_artists(
        self, config: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk_with(monkeypatch, free=needed_bytes(config, 2))
        assert batch_problems(config, tmp_path, 2, uploads=False) == []
        (problem,) = batch_problems(config, tmp_path, 3, uploads=False)
        assert "3 adapters" in problem
        assert str(tmp_path) in problem

    def test_not_writable(
        self, config: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mimicry.tuning.planning.plan.os.access", lambda path, mode: False)
        (problem,) = batch_problems(config, tmp_path, 1, uploads=False)
        assert problem == f"{tmp_path} is not writable; name another tree with --data-root"


class TestNeededBytes:
    logs = 4 << 20

    def elsewhere(self, **options: Any) -> TuningConfig:
        """Return a configuration whose base model is not on this machine."""
        return TuningConfig(pretrained_model_name_or_path="lab/not-here", **options)

    def test_of_sd35_large(self) -> None:
        # 38 blocks, 8 projections, two factors of 2432 x 16 numbers.
        count = 38 * 8 * 2 * 2432 * 16
        # 26 of them in bf16; and twice, in fp32, the parameters of one with both moments of AdamW.
        assert needed_bytes(self.elsewhere(), 26) == 26 * (2 * count + self.logs) + 2 * 3 * 4 * count
        config = self.elsewhere(rank=32, upcast_before_saving=True, checkpoints_total_limit=3)
        assert needed_bytes(config, 1) == 8 * count + self.logs + 4 * 3 * 8 * count

    def test_of_a_model_on_disk(self, config: TuningConfig, tmp_path: Path) -> None:
        count = 2 * 8 * 2 * 16 * 16
        assert needed_bytes(config, 1) == 2 * count + self.logs + 2 * 3 * 4 * count
        (tmp_path / "model" / "transformer" / "config.json").write_text("{}")
        assert needed_bytes(config, 1) == needed_bytes(self.elsewhere(resolution=64), 1)

    def test_of_a_stack_without_options(self) -> None:
        assert StackTraits(hub_prefix="other").disk_bytes(None, 3) == 3 * self.logs


class TestHostBytes:
    def files(self, folder: Path, **sizes: int) -> None:
        for name, size in sizes.items():
            with (folder / f"{name.replace('__', '.')}.safetensors").open("wb") as file:
                file.truncate(size)

    def test_the_largest_part_counts_for_each_process(self, config: TuningConfig, tmp_path: Path) -> None:
        model = tmp_path / "model"
        for path in model.rglob("*.safetensors"):
            path.unlink()
        self.files(model / "transformer", shard_1=5000, shard_2=4000, model__fp16=3000)
        self.files(model / "text_encoder", model=2000)
        assert host_bytes(config) == 9000
        assert host_bytes(replace(config, num_processes=2)) == 18_000
        assert host_bytes(replace(config, variant="fp16")) == 3000

    def test_of_a_model_that_is_not_here_nothing_is_known(self) -> None:
        assert host_bytes(TuningConfig(pretrained_model_name_or_path="lab/not-here")) == 0

    def test_of_another_stack_nothing_is_known(self) -> None:
        assert StackTraits(hub_prefix="other").host_bytes(None) == 0


class FakeHub(BaseHTTPRequestHandler):
    status, headers_sent = 200, dict[str, str]()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body = b"{}"
        self.send_response(self.status)
        for name, value in {**self.headers_sent, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Be silent."""


class TestHub:
    """The real client against a server of ours."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        with HTTPServer(("127.0.0.1", 0), type("Hub", (FakeHub,), {})) as server:
            server.asked = []  # type: ignore[attr-defined]
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
            yield server
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()

    @pytest.fixture
    def remote(self, tmp_path: Path) -> TuningConfig:
        return TuningConfig(pretrained_model_name_or_path="lab/model", cache_dir=str(tmp_path))

    def test_a_model_to_be_had(self, hub: Any, remote: TuningConfig, tmp_path: Path) -> None:
        assert batch_problems(remote, tmp_path, 1, uploads=False) == []
        assert "/api/models/lab/model/auth-check" in hub.asked

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            (403, "GatedRepo", "accept its licence at https://huggingface.co/lab/model"),
            (401, "RepoNotFound", "no such model on the Hub"),
            (404, "RepoNotFound", "no such model on the Hub"),
            (418, "", "cannot be had from the Hub"),
        ],
    )
    def test_refusals(
        self, hub: Any, remote: TuningConfig, tmp_path: Path, status: int, code: str, words: str
    ) -> None:
        hub.RequestHandlerClass.status = status
        hub.RequestHandlerClass.headers_sent = {"X-Error-Code": code}
        (problem,) = batch_problems(remote, tmp_path, 1, uploads=False)
        assert words in problem
        assert "\n" not in problem

    def test_no_network(self, remote: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with HTTPServer(("127.0.0.1", 0), FakeHub) as server:
            port = server.server_port
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        (problem,) = batch_problems(remote, tmp_path, 1, uploads=False)
        assert "lab/model cannot be had from the Hub" in problem
        assert "check the network" in problem

    def test_a_cached_model_is_not_asked_for(self, hub: Any, tmp_path: Path) -> None:
        make_cached_model(tmp_path)
        config = TuningConfig(
            pretrained_model_name_or_path="lab/model", cache_dir=str(tmp_path), resolution=64
        )
        assert batch_problems(config, tmp_path, 1, uploads=False) == []
        assert hub.asked == []

    def test_without_network_nobody_is_asked(self, hub: Any, remote: TuningConfig, tmp_path: Path) -> None:
        assert batch_problems(remote, tmp_path, 1, uploads=False, network=False) == []
        assert hub.asked == []

    def test_offline_by_choice(
        self, hub: Any, remote: TuningConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        (problem,) = batch_problems(remote, tmp_path, 1, uploads=False)
        assert "HF_HUB_OFFLINE" in problem
        assert hub.asked == []
