"""Fixtures that every room of the tests may use."""

from pathlib import Path

import pytest

from mimicry.demo.draw_demo import draw_demo


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded study, drawn once: style_mimicry/ and tiny_sd3/. Tests must not change it."""
    folder = tmp_path_factory.mktemp("demo")
    draw_demo(folder)
    return folder
