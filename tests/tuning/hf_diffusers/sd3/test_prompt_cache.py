"""Prompt embeddings on disk: the same as without, and nothing that cannot be trusted."""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from mimicry.tuning.hf_diffusers.sd3.prompts import (
    TEXT_COMPONENTS,
    CachedEncoders,
    PromptEmbeds,
    TextEncoders,
    default_folder,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from tests.hostile_names import over_hostile_names
from tests.tuning.hf_diffusers.sd3.parts import train
from tests.tuning.hf_diffusers.studio import Studio, training_run

PROMPT = "a painting in the style of sks"
LONG = "of a very long description " * 40
CPU = torch.device("cpu")
WEIGHTS = "pytorch_lora_weights.safetensors"


def encoders_of(folder: Path, warnings: list[str] | None = None, **changes: Any) -> TextEncoders:
    warn: Callable[[str], None] = print if warnings is None else warnings.append
    return replace(TextEncoders(BaseModel(folder=folder), None, CPU, torch.float32, warn), **changes)


def assert_equal(ours: PromptEmbeds, expected: PromptEmbeds) -> None:
    for one, other in (
        (ours.sequence_1LD, expected.sequence_1LD),
        (ours.pooled_1P, expected.pooled_1P),
    ):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.fixture
def read_components(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which text encoders and tokenizers were read, as it goes on."""
    names: list[str] = []
    for kind in (CLIPTextModelWithProjection, T5EncoderModel, AutoTokenizer):
        original = kind.from_pretrained.__func__

        def from_pretrained(cls: Any, path: Path, /, *, original: Any = original, **more: Any) -> Any:
            names.append(Path(path).name)
            return original(cls, path, **more)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(from_pretrained))
    return names


def cached_files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 77, 256])
def test_the_second_time_no_component_is_read_and_no_bit_differs(
    dtype: torch.dtype, length: int, studio: Studio, prompt_cache: Path, read_components: list[str]
) -> None:
    encoders = encoders_of(studio.base_model, dtype=dtype)
    expected = encoders.encode_all([PROMPT], length)[0]
    read_components.clear()

    first = CachedEncoders(encoders, prompt_cache).encode_all([PROMPT], length)[0]
    assert sorted(read_components) == sorted(TEXT_COMPONENTS)
    second = CachedEncoders(encoders, prompt_cache).encode_all([PROMPT], length)[0]

    assert len(read_components) == len(TEXT_COMPONENTS)
    assert first.sequence_1LD.shape[1] == 77 + length
    assert_equal(first, expected)
    assert_equal(second, expected)


def test_of_many_prompts_only_those_that_are_new_are_encoded(
    studio: Studio, prompt_cache: Path, read_components: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    cached = CachedEncoders(encoders_of(studio.base_model, warnings), prompt_cache)
    expected = [cached.encode_all([prompt], 77)[0] for prompt in (PROMPT, LONG)]
    read_components.clear()
    warnings.clear()
    capsys.readouterr()

    found = cached.encode_all([LONG, "a boat", PROMPT, "a tree", "a boat"], 77)

    assert sorted(read_components) == sorted(TEXT_COMPONENTS)
    assert len(cached_files(prompt_cache)) == 4
    for ours, theirs in ((found[0], expected[1]), (found[2], expected[0]), (found[1], found[4])):
        assert_equal(ours, theirs)
    assert not torch.equal(found[1].pooled_1P, found[3].pooled_1P)
    assert [warning.split()[0] for warning in warnings] == ["CLIP", "CLIP", "T5"]
    said = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[0] for line in said] == [
        "prompt embeddings from the cache, 2 prompts",
        "",
        "prompt embeddings cached, 2 prompts",
    ]
    assert said[1] == "encoding 2 prompts"


@over_hostile_names
def test_any_prompt_is_cached(hostile_name: str, studio: Studio, prompt_cache: Path) -> None:
    cached = CachedEncoders(encoders_of(studio.base_model), prompt_cache)
    prompt = f"in the style of {hostile_name}".encode("utf-8", "replace").decode()
    assert_equal(cached.encode_all([prompt], 77)[0], cached.encode_all([prompt], 77)[0])
    assert len(cached_files(prompt_cache)) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda encoders: (encoders, f"{PROMPT} ", 77),
        lambda encoders: (encoders, PROMPT, 78),
        lambda encoders: (replace(encoders, dtype=torch.bfloat16), PROMPT, 77),
        lambda encoders: (replace(encoders, variant="fp16"), PROMPT, 77),
    ],
    ids=["prompt", "length", "precision", "variant"],
)
def test_whatever_else_is_asked_for_is_something_else(
    other: Callable[[TextEncoders], tuple[TextEncoders, str, int]], studio: Studio, prompt_cache: Path
) -> None:
    def fake(encoders: TextEncoders, prompts: list[str], length: int) -> list[PromptEmbeds]:
        number = float(len(prompts[0]) + length)
        return [PromptEmbeds(torch.full((1, 1, 1), number), torch.full((1, 1), number))]

    encoders = encoders_of(studio.base_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoders, "encode_all", fake)
        for asked, prompt, length in ((encoders, PROMPT, 77), other(encoders)):
            CachedEncoders(asked, prompt_cache).encode_all([prompt], length)[0]
    assert len(cached_files(prompt_cache)) == 2


class TestBaseModel:
    def name_of(self, model: BaseModel, folder: Path) -> str:
        """Return the name of the file that the embeddings for `model` are kept in."""
        encoders = encoders_of(model.folder, model=model)
        for path in cached_files(folder):
            path.unlink()
        with pytest.MonkeyPatch.context() as patch:
            embeds = PromptEmbeds(torch.zeros(1, 1, 1), torch.zeros(1, 1))
            patch.setattr(TextEncoders, "encode_all", lambda *_: [embeds])
            CachedEncoders(encoders, folder).encode_all([PROMPT], 77)[0]
        (path,) = cached_files(folder)
        return path.name

    def test_a_folder_is_told_by_its_text_components_alone(
        self, studio: Studio, tmp_path: Path, prompt_cache: Path
    ) -> None:
        copy = shutil.copytree(studio.base_model, tmp_path / "copy")
        name = self.name_of(BaseModel(folder=studio.base_model), prompt_cache)
        assert self.name_of(BaseModel(folder=copy), prompt_cache) == name

        (copy / "transformer" / "config.json").write_text('{"changed": 1}')
        (copy / "vae" / "more.bin").write_bytes(b"x")
        assert self.name_of(BaseModel(folder=copy), prompt_cache) == name

    @pytest.mark.parametrize("component", TEXT_COMPONENTS)
    def test_every_text_component_counts(
        self, component: str, studio: Studio, tmp_path: Path, prompt_cache: Path
    ) -> None:
        copy = shutil.copytree(studio.base_model, tmp_path / "copy")
        name = self.name_of(BaseModel(folder=copy), prompt_cache)
        path = sorted((copy / component).iterdir())[-1]
        path.write_bytes(path.read_bytes() + b"\n")
        assert self.name_of(BaseModel(folder=copy), prompt_cache) != name

    def test_a_hub_model_is_told_by_name_and_commit(self, studio: Studio, prompt_cache: Path) -> None:
        models = [
            BaseModel(folder=studio.base_model),
            BaseModel(folder=studio.base_model, name="lab/one", revision="0" * 40),
            BaseModel(folder=studio.base_model, name="lab/two", revision="0" * 40),
            BaseModel(folder=studio.base_model, name="lab/one", revision="1" * 40),
        ]
        assert len({self.name_of(model, prompt_cache) for model in models}) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"\xff" * len(content),
        lambda content: content.replace(b"warnings", b"warninks"),
        lambda content: content.replace(b"sks", b"skt"),
    ],
    ids=["empty", "head", "cut", "one bit", "noise", "no warnings", "another prompt"],
)
def test_a_broken_file_is_made_anew(
    damage: Callable[[bytes], bytes],
    studio: Studio,
    prompt_cache: Path,
    read_components: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cached = CachedEncoders(encoders_of(studio.base_model), prompt_cache)
    expected = cached.encode_all([PROMPT], 77)[0]
    (path,) = cached_files(prompt_cache)
    whole = path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    path.write_bytes(damaged)
    read_components.clear()
    capsys.readouterr()

    assert_equal(cached.encode_all([PROMPT], 77)[0], expected)

    assert len(read_components) == len(TEXT_COMPONENTS)
    assert "broken and made again" in capsys.readouterr().out
    assert path.read_bytes() == whole
    assert_equal(cached.encode_all([PROMPT], 77)[0], expected)
    assert len(read_components) == len(TEXT_COMPONENTS)


def test_warnings_of_a_prompt_that_is_cut_come_from_the_cache_too(studio: Studio, prompt_cache: Path) -> None:
    first: list[str] = []
    second: list[str] = []
    for warnings in (first, second):
        CachedEncoders(encoders_of(studio.base_model, warnings), prompt_cache).encode_all([LONG], 77)
    assert [warning.split()[0] for warning in first] == ["CLIP", "CLIP", "T5"]
    assert second == first


@pytest.mark.parametrize("obstacle", ["a file", "below a file"])
def test_a_folder_that_cannot_be_written_is_a_warning(
    obstacle: str, studio: Studio, tmp_path: Path, read_components: list[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / "file" / ("below" if obstacle == "below a file" else "")
    warnings: list[str] = []
    cached = CachedEncoders(encoders_of(studio.base_model, warnings), folder)
    expected = encoders_of(studio.base_model).encode_all([PROMPT], 77)[0]

    assert_equal(cached.encode_all([PROMPT], 77)[0], expected)

    (warning,) = warnings
    assert "--prompt-cache-dir" in warning
    assert str(tmp_path) not in warning  # it goes into training_run.json, which may be published


def test_a_file_has_ordinary_permissions_and_nothing_is_left_beside_it(
    studio: Studio, prompt_cache: Path
) -> None:
    CachedEncoders(encoders_of(studio.base_model), prompt_cache).encode_all([PROMPT], 77)[0]
    (path,) = cached_files(prompt_cache)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert path.suffix == ".safetensors"


_WRITER = """
import sys, time, torch
from pathlib import Path
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.sd3.prompts import CachedEncoders
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds, TextEncoders

torch.set_num_threads(1)
embeds = PromptEmbeds(torch.arange(300_000.0).view(1, 3000, 100), torch.arange(50.0).view(1, 50))
TextEncoders.encode_all = lambda *_: [embeds]
encoders = TextEncoders(BaseModel(Path(sys.argv[1])), None, torch.device("cpu"), torch.float32, print)
cached = CachedEncoders(encoders, Path(sys.argv[2]))
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
for _ in range(40):
    got = cached.encode_all(["a prompt"], 77)[0]
    assert torch.equal(got.sequence_1LD, embeds.sequence_1LD)
    for path in cached.folder.glob("[!.]*"):
        path.unlink(missing_ok=True)
"""


def test_several_processes_share_a_folder(studio: Studio, tmp_path: Path) -> None:
    """Each writes, reads and removes the one file as fast as it can; none sees half of it."""
    words = [studio.base_model, tmp_path / "prompts", tmp_path / "go"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    (tmp_path / "go").touch()
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert b"broken" not in out
        assert b"not cached" not in out


class TestFolder:
    def test_it_follows_the_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for value in ("", "relative/folder"):
            monkeypatch.setenv("XDG_CACHE_HOME", value)
            assert default_folder() == tmp_path / "home" / ".cache" / "mimicry" / "prompts"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_folder() == tmp_path / "home" / ".cache" / "mimicry" / "prompts"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert default_folder() == tmp_path / "cache" / "mimicry" / "prompts"

    def test_it_can_be_named(self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        encoders = encoders_of(studio.base_model)
        assert CachedEncoders.from_option(encoders, "~/embeddings").folder == tmp_path / "embeddings"
        assert CachedEncoders.from_option(encoders, "here").folder == Path("here")
        assert CachedEncoders.from_option(encoders, None).folder == default_folder()


class TestTraining:
    def test_the_second_artist_reads_no_encoder_and_gets_the_same_adapter(
        self, studio: Studio, tmp_path: Path, prompt_cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(studio, tmp_path / "first")
        size = re.search(
            r"^encoding the prompt 'a painting .*'\nprompt embeddings cached, (\d+ kB)$",
            capsys.readouterr().out,
            re.MULTILINE,
        )
        assert size is not None

        def refuse(*_: object, **__: object) -> None:
            raise OSError("unreadable")

        with pytest.MonkeyPatch.context() as patch:
            for kind in (CLIPTextModelWithProjection, T5EncoderModel, AutoTokenizer):
                patch.setattr(kind, "from_pretrained", refuse)
            train(studio, tmp_path / "second")
            with pytest.raises(OSError, match="unreadable"):
                train(studio, tmp_path / "third", f"--prompt_cache_dir={tmp_path / 'elsewhere'}")
        assert f"prompt embeddings from the cache, {size[1]}\n" in capsys.readouterr().out
        assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()
        first, second = (training_run(tmp_path / name) for name in ("first", "second"))
        assert first["recipe_hash"] == second["recipe_hash"]
        assert len(cached_files(prompt_cache)) == 1

    def test_the_folder_is_a_path_of_this_machine(self, studio: Studio, tmp_path: Path) -> None:
        folder = tmp_path / "embeddings"
        train(studio, tmp_path / "out", f"--prompt_cache_dir={folder}", f"--instance_prompt={LONG}")
        run = training_run(tmp_path / "out")
        assert run["paths"].pop("prompt_cache_dir") == str(folder)
        assert run["options"]["prompt_cache_dir"] is None
        assert len(cached_files(folder)) == 1
        train(studio, tmp_path / "again", f"--prompt_cache_dir={folder}", f"--instance_prompt={LONG}")
        assert training_run(tmp_path / "again")["warnings"] == run["warnings"] != []

    def test_it_goes_on_without_a_folder(self, studio: Studio, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        train(studio, tmp_path / "out", f"--prompt_cache_dir={tmp_path / 'file'}")
        run = training_run(tmp_path / "out")
        assert run["status"] == "complete"
        assert "are not cached" in run["warnings"][0]
