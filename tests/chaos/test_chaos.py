"""Pilots that are killed and damaged at random moments end like undisturbed ones."""

from pathlib import Path

import pytest

from tests.chaos import chaos


def rounds(count: int, seed: int, demo_dir: Path, tmp_path: Path) -> int:
    words = [f"--rounds={count}", f"--seed={seed}", f"--demo={demo_dir}", f"--keep={tmp_path / 'kept'}"]
    return chaos.main(words)


@pytest.mark.slow
def test_one_round(demo_dir: Path, tmp_path: Path) -> None:
    assert rounds(1, 8, demo_dir, tmp_path) == 0


@pytest.mark.chaos
def test_five_rounds(demo_dir: Path, tmp_path: Path) -> None:
    assert rounds(5, 100, demo_dir, tmp_path) == 0
