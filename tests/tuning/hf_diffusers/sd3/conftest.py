"""For all tests of the trainer's parts: one thread, no cached prompts, and one whole run.

On a model this small more threads only wait for each other.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import RUN
from tests.tuning.hf_diffusers.studio import Studio


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(autouse=True)
def prompt_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached prompt embeddings, new for each test: it does not exist."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "mimicry" / "prompts"


@pytest.fixture(scope="package")
def whole(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped. Tests must not change it."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    train(studio, folder, *RUN)
    return folder
