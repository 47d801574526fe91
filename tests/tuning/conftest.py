"""Fixtures for the tests of this room."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from tests.fake_hub import FakeHub
from tests.small_study import write_study
from tests.tuning.quick_studio import QuickStudio, write_quick_stack


@pytest.fixture
def quick_studio(
    tmp_path: Path, demo_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> QuickStudio:
    """A small study and a quick stack, in the working directory and without a token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return QuickStudio(
        folder=tmp_path,
        tree=write_study(tmp_path / "study"),
        stack=write_quick_stack(tmp_path / "quick"),
        base_model=demo_dir / "tiny_sd3",
        capsys=capsys,
    )


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub on loopback, which children of this process talk to."""
    with FakeHub() as fake:
        for name, value in (fake.environment() | {"HF_HOME": str(tmp_path / "hf_home")}).items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def hub_client_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the client in this process talk to a Hub: it reads the variables only when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield
    close_session()
