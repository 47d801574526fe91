"""Fixtures for the tests of the stack: a few paintings, and a state of accelerate that is nobody else's."""

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.sd3.resuming import RUN
from tests.tuning.hf_diffusers.studio import WRAPPER, Studio, environment, run

_FEW = 4
_INPUT = "data/style_mimicry/original_art/historical/impressionism/Claude_Monet"
_OUTPUT = "data/style_mimicry/models/lora/hf_diffusers/none__none/historical/impressionism/Claude_Monet"


@dataclass(frozen=True)
class Tuned:
    """What the wrapper left of one artist: its working directory, its arguments, and its result."""

    folder: Path
    words: tuple[str, ...]
    outcome: subprocess.CompletedProcess[str]

    @property
    def output_dir(self) -> Path:
        return self.folder / _OUTPUT


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Let each test choose its own precision: accelerate keeps the first one of a process."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def studio(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """The tiny model, and a few paintings of one artist in two conditions. Tests must not change them."""
    folder = tmp_path_factory.mktemp("studio")
    data_root = demo_dir / "style_mimicry"
    artist = Path("historical", "baroque", "Casimir_Drovanti")
    for condition, source in (("original", "original_art"), ("mist", "protected_art/mist")):
        (folder / condition).mkdir()
        for path in sorted((data_root / source / artist).iterdir())[:_FEW]:
            shutil.copyfile(path, folder / condition / path.name)
    return Studio(base_model=demo_dir / "tiny_sd3", images=folder / "original", mist=folder / "mist")


@pytest.fixture(scope="session")
def tuned(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """One artist, trained by the command of the README in a folder as it has it. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(studio.images, folder / _INPUT)
    # By their paths in the checkout, as people type them.
    (folder / "mimicry").symlink_to(WRAPPER.parents[2])
    words = (
        *("--input-dir", _INPUT, "--output-dir", _OUTPUT, "--no-push-to-hub"),
        *("--pretrained-model-name-or-path", str(studio.base_model)),
        *("--resolution", "32", "--max-train-steps", "3", "--rank", "4"),
    )
    program = Path("mimicry", "tuning", "hf_diffusers", WRAPPER.name)
    outcome = run(program, words, cwd=folder, env=environment(PYTHONHASHSEED="1"))
    return Tuned(folder, words, outcome)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(autouse=True, scope="session")
def _quick_collections() -> Iterator[None]:
    """Leave what imports have made out of garbage collections, as the trainer's program does."""
    gc.freeze()
    yield
    gc.unfreeze()


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
