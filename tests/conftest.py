"""Fixtures that every room of the tests may use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mimicry.demo.draw_demo import draw_demo


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
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded study, drawn once: style_mimicry/ and tiny_sd3/. Tests must not change it."""
    folder = tmp_path_factory.mktemp("demo")
    draw_demo(folder)
    return folder
