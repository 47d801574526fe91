"""Fixtures that every room of the tests may use."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimicry.demo.draw_demo import draw_demo
from mimicry.study.tree import StudyTree
from tests.fake_gpus import FakeGpus
from tests.random_sd3 import write_random_sd3
from tests.small_study import share_samples, write_study


@pytest.fixture(autouse=True, scope="session")
def _no_ignored_signals() -> None:
    """Let programs that tests start hear of signals that nohup, or a shell for its jobs, makes us ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True, scope="session")
def _repeatable_cublas() -> Iterator[None]:
    """Let tests on a GPU ask for determinism: cuBLAS reads this once, at its first call in the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        yield


@pytest.fixture(autouse=True)
def _no_lasting_determinism() -> Iterator[None]:
    """Let no test leave torch with deterministic algorithms only; one that never loads torch stays quick."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True, scope="session")
def _no_files_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is cached for a user, by us or by a library, out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_hub() -> Iterator[None]:
    """Let programs that are started find no Hub, unless a test gives them one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        yield


@pytest.fixture(scope="session")
def true_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mimicry demo` draws: style_mimicry/ and the trained tiny_sd3/. Tests must not change it."""
    base = tmp_path_factory.getbasetemp()
    # Workers of one run draw it once: the first, while the others wait for its lock.
    folder = base.parent / "true_demo" if "PYTEST_XDIST_WORKER" in os.environ else base / "true_demo"
    draw_demo(folder)
    return folder


@pytest.fixture(scope="session")
def demo_dir(true_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded study, with a smaller model of random weights. Tests must not change it."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(true_demo / "style_mimicry", folder / "style_mimicry")
    write_random_sd3(folder / "tiny_sd3")
    return folder


@pytest.fixture
def fake_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """A stand-in for nvidia-smi, first in PATH; no variable of this machine chooses GPUs or a device."""
    folder = tmp_path / "fake nvidia-smi"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "ACCELERATE_TORCH_DEVICE",
        "ACCELERATE_USE_CPU",
    ):
        monkeypatch.delenv(name, raising=False)
    fake = FakeGpus(folder)
    fake.listing("", code=9)
    return fake


@pytest.fixture
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "a study")


@pytest.fixture
def shared_samples(tree: StudyTree) -> StudyTree:
    return share_samples(tree)
