"""A real Slurm for the tests that have the marker, one for all of a module."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.left_behind import none_left_behind
from tests.slurm.real_slurm import RealSlurm, real_slurm, why_not


@pytest.fixture(autouse=True)
def _none_left_behind() -> Iterator[None]:
    """Let no test leave a process behind, also when it fails."""
    with none_left_behind():
        yield


@pytest.fixture(scope="module")
def _running_slurm() -> Iterator[RealSlurm]:
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm")).resolve()
    try:
        with real_slurm(folder / "s", max_array_size=8) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(_running_slurm: RealSlurm, _none_left_behind: None) -> Iterator[RealSlurm]:
    """A Slurm with arrays of up to seven jobs, that is empty again after the test."""
    try:
        yield _running_slurm
    finally:
        _running_slurm.clear()
