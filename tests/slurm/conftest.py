"""A real Slurm for the tests that have the marker, one for all of a module."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.real_slurm import RealSlurm, real_slurm, why_not


@pytest.fixture(scope="module")
def slurm() -> Iterator[RealSlurm]:
    """A Slurm with arrays of up to seven jobs."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    try:
        with real_slurm(folder / "s", max_array_size=8) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)
