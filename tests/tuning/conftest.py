"""Fixtures for the tests of this room."""

from pathlib import Path

import pytest

from mimicry.common.study_tree import StudyTree
from tests.tuning.quick_studio import QuickStudio, write_quick_stack
from tests.tuning.small_study import share_samples, write_study


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
def tree(tmp_path: Path) -> StudyTree:
    return write_study(tmp_path / "a study")


@pytest.fixture
def shared_samples(tree: StudyTree) -> StudyTree:
    return share_samples(tree)
