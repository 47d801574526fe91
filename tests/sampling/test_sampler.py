"""Pictures of one sampler: the same with a conditioning table and without, and whatever else is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel

from mimicry.common import hardware
from mimicry.common.errors import BatchFault
from mimicry.sampling import sampler
from mimicry.sampling.sampler import BaseTransformer, Sampler
from mimicry.tuning.hf_diffusers.sd3.modulation import REPLACED, CachedModulationTransformer
from mimicry.tuning.hf_diffusers.sd3.sampling import SamplingSettings
from mimicry.tuning.hf_diffusers.sd3.transformer import read_transformer
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.latents import decode
from mimicry.tuning.options.config import TuningConfig
from tests.random_sd3 import write_random_sd3
from tests.sampling.adapters import write_adapter

PROMPTS = ("a boat", "a tree", "")
SETTINGS = SamplingSettings(resolution=32, steps=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("model") / "tiny_sd3"
    write_random_sd3(folder)
    return BaseModel(folder=folder)


@pytest.fixture(scope="module")
def folders(model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path | None, ...]:
    """The base model alone, and two adapters."""
    folder = tmp_path_factory.mktemp("adapters")
    usual = write_adapter(folder / "usual", model, ("attn.to_q", "attn.to_out.0", "attn.add_v_proj"), seed=1)
    return None, usual, write_adapter(folder / "other", model, ("attn.to_k", "ff.net.2"), seed=2)


def load(model: BaseModel, *prompts: str, trained_layers: tuple[str, ...] = (), **options: Any) -> Sampler:
    config = TuningConfig(**{"mixed_precision": "no", **options})
    return Sampler.load(model, config, SETTINGS, prompts, trained_layers)


def pictures(one: Sampler, folder: Path | None, *prompts: str) -> list[bytes]:
    with one.base.adapter(folder):
        return [one.image(prompt, seed).tobytes() for prompt in prompts for seed in (0, 1)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_table_changes_no_bit_of_a_picture(
    precision: str, model: BaseModel, folders: tuple[Path | None, ...]
) -> None:
    tabled = load(model, *PROMPTS, mixed_precision=precision)
    whole = load(model, *PROMPTS, mixed_precision=precision, conditioning_table=False)
    assert type(tabled.base.transformer) is CachedModulationTransformer
    assert type(whole.base.transformer) is SD3Transformer2DModel

    found = [picture for folder in folders for picture in pictures(tabled, folder, *PROMPTS)]

    assert found == [picture for folder in folders for picture in pictures(whole, folder, *PROMPTS)]
    assert len(set(found)) == len(folders) * len(PROMPTS) * 2


def test_a_picture_does_not_depend_on_what_else_is_drawn(
    model: BaseModel, folders: tuple[Path | None, ...]
) -> None:
    together = load(model, *PROMPTS)
    for prompt in PROMPTS:
        alone = load(model, prompt)
        for folder in reversed(folders):
            assert pictures(together, folder, prompt) == pictures(alone, folder, prompt)


def test_what_the_table_replaces_is_not_in_memory(
    model: BaseModel, folders: tuple[Path | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []

    def watched(*args: Any, cached_modulation: bool) -> SD3Transformer2DModel:
        read.append(cached_modulation)
        return read_transformer(*args, cached_modulation=cached_modulation)

    monkeypatch.setattr(sampler, "read_transformer", watched)
    one = load(model, *PROMPTS)

    with one.base.adapter(folders[1]):
        one.image("a boat", 0)
        names = [name for name, _ in one.base.transformer.named_parameters()]
    assert read == [True]
    assert len(names) > 50
    assert not [name for name in names if set(name.split(".")) & set(REPLACED)]
    assert 0 < one.base.byte_count < load(model, "a boat", conditioning_table=False).base.byte_count


@pytest.mark.parametrize("obstacle", ["a trained layer", "too little host memory"])
def test_without_a_table_pictures_are_the_same(
    obstacle: str,
    model: BaseModel,
    folders: tuple[Path | None, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = pictures(load(model, "a boat"), folders[1], "a boat")
    assert "conditioning table" not in capsys.readouterr().out
    trained: tuple[str, ...] = ()
    if obstacle == "a trained layer":
        trained = ("transformer_blocks.1.norm1.linear",)
    else:
        monkeypatch.setattr(hardware, "free_host_bytes", lambda: 1000)

    one = load(model, "a boat", trained_layers=trained)

    said = capsys.readouterr().out
    reason = "the adapter trains transformer_blocks.1.norm1.linear" if trained else "with 6 pairs"
    assert f"no conditioning table: {reason}" in said
    assert type(one.base.transformer) is SD3Transformer2DModel
    assert pictures(one, folders[1], "a boat") == expected


def test_an_adapter_is_in_fp32_on_any_base_model(model: BaseModel, folders: tuple[Path | None, ...]) -> None:
    one = load(model, "a boat", mixed_precision="bf16")

    with one.base.adapter(folders[1]):
        types = {
            ".lora_" in name: value.dtype
            for name, value in one.base.transformer.named_parameters()
            if not name.startswith("pos_embed")
        }

    assert types == {True: torch.float32, False: torch.bfloat16}


class TestDecodingWithoutRoom:
    """The GPU has no room for transformer and decoding at once: the transformer makes room."""

    @pytest.fixture
    def did(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What is done, in order; decoding fails beside the transformer."""
        did: list[str] = []
        set_aside = BaseTransformer.set_aside

        def narrow(*args: Any) -> Any:
            did.append("decode")
            if did[-2:-1] != ["set aside"]:
                raise torch.OutOfMemoryError("tried to allocate 1 GiB")
            return decode(*args)

        @contextmanager
        def watched(base: BaseTransformer) -> Iterator[None]:
            did.append("set aside")
            with set_aside(base):
                yield
            did.append("back")

        monkeypatch.setattr(sampler, "decode", narrow)
        monkeypatch.setattr(BaseTransformer, "set_aside", watched)
        return did

    @pytest.fixture
    def expected(self, model: BaseModel, folders: tuple[Path | None, ...]) -> list[bytes]:
        return pictures(load(model, "a boat"), folders[1], "a boat")

    def test_the_picture_is_the_same(
        self,
        model: BaseModel,
        folders: tuple[Path | None, ...],
        expected: list[bytes],
        did: list[str],
    ) -> None:
        assert pictures(load(model, "a boat"), folders[1], "a boat") == expected
        assert did == ["decode", "set aside", "decode", "back"] * 2

    def test_nor_has_the_host(
        self, model: BaseModel, did: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = load(model, "a boat")
        monkeypatch.setattr(hardware, "free_host_bytes", lambda: 1000)

        with pytest.raises(BatchFault, match="type a smaller --resolution"):
            one.image("a boat", 0)

        assert did == ["decode"]
