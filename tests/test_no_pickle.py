"""No file that our code reads can run a program: it unpickles nothing."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mimicry
from mimicry.common.errors import AdapterBroken, TrainingFailed
from mimicry.common.files import sha256_file
from mimicry.tuning.adapters.checkpoint_facts import ADAPTER, STATE
from mimicry.tuning.adapters.folder import CHECKPOINT_FACTS as FACTS
from mimicry.tuning.adapters.folder import WEIGHTS
from mimicry.tuning.hf_diffusers.sd3.prompts import CachedEncoders, TextEncoders
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint
from tests.tuning.lora_files import check_adapter
from tests.tuning.model_files import make_model

_UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.crater),)


@pytest.fixture
def crater(tmp_path: Path) -> Iterator[Path]:
    """What must not be there in the end."""
    yield tmp_path / "crater"
    assert not (tmp_path / "crater").exists()


def bombs(crater: Path) -> list[bytes]:
    """Return the bomb as pickle and as torch.save makes it."""
    torch.save(Bomb(crater), crater.with_name("bomb.pt"))
    return [pickle.dumps(Bomb(crater)), crater.with_name("bomb.pt").read_bytes()]


def test_the_bombs_work(tmp_path: Path) -> None:
    for number, content in enumerate(bombs(tmp_path / "crater")):
        (tmp_path / f"{number}").write_bytes(content)
        if number == 0:
            pickle.loads(content)
        else:
            torch.load(tmp_path / f"{number}", weights_only=False)
        (tmp_path / "crater").rmdir()


def test_no_source_unpickles() -> None:
    found = []
    for path in Path(mimicry.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names=names):
                    found += [(path.name, alias.name) for alias in names if alias.name in _UNPICKLERS]
                case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in _UNPICKLERS:
                    found.append((path.name, module))
                case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="load"), keywords=keywords):
                    safe = {"torch": "weights_only", "np": "", "numpy": ""}.get(owner)
                    words = {keyword.arg for keyword in keywords}
                    if (safe and safe not in words) or "allow_pickle" in words:
                        found.append((path.name, f"{owner}.load"))
                case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                    found.append((path.name, name))
    assert found == []


def test_an_adapter(crater: Path, tmp_path: Path) -> None:
    for content in bombs(crater):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(AdapterBroken):
            check_adapter(tmp_path, rank=None)


def test_a_checkpoint(crater: Path, tmp_path: Path) -> None:
    """With all the right hashes: whoever can write the bomb can write them too."""
    for content in bombs(crater):
        for name in (ADAPTER, STATE):
            (tmp_path / name).write_bytes(content)
        (tmp_path / "metrics.jsonl").touch()
        hashes = {name: sha256_file(tmp_path / name) for name in (ADAPTER, STATE, "metrics.jsonl")}
        (tmp_path / FACTS).write_text(json.dumps({"schema": 1, "step": 1, "states": {}, "sha256": hashes}))
        with pytest.raises(TrainingFailed, match="cannot be read"):
            Checkpoint.read(tmp_path).restore({}, {})


def test_cached_prompt_embeddings(crater: Path, tmp_path: Path, demo_dir: Path) -> None:
    model = BaseModel(demo_dir / "tiny_sd3")
    encoders = TextEncoders(model, None, torch.device("cpu"), torch.float32, print)
    cached = CachedEncoders.from_option(encoders, str(tmp_path / "prompts"))
    expected = cached.encode_all(["a tree"], 8)[0]
    (file,) = (tmp_path / "prompts").iterdir()
    for content in bombs(crater):
        file.write_bytes(content)
        assert torch.equal(cached.encode_all(["a tree"], 8)[0].sequence_1LD, expected.sequence_1LD)
        # Made anew, and not read.
        assert file.read_bytes() != content


def test_a_base_model(crater: Path, tmp_path: Path, demo_dir: Path) -> None:
    folder = make_model(tmp_path / "model")
    assert BaseModel(folder).problems(64) == []
    for content in bombs(crater):
        for name in ("vae", "text_encoder_2"):
            (folder / name / "model.safetensors").unlink(missing_ok=True)
            (folder / name / "diffusion_pytorch_model.bin").write_bytes(content)
        (problem,) = BaseModel(folder).problems(64)
        assert "has weights of text_encoder_2, vae as pickles only" in problem


def test_the_libraries_do_not_either(crater: Path, tmp_path: Path, demo_dir: Path) -> None:
    """When the check above is passed by, as with a bomb beside the weights of another variant."""
    from mimicry.tuning.hf_diffusers.training.latents import LatentSource
    from mimicry.tuning.options.config import TuningConfig

    folder = tmp_path / "model"
    shutil.copytree(demo_dir / "tiny_sd3" / "vae", folder / "vae")
    for path in (folder / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    for content in bombs(crater):
        (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(content)
        with pytest.raises(OSError, match="safetensors"):
            LatentSource.load(BaseModel(folder), [], TuningConfig(), torch.device("cpu"))
