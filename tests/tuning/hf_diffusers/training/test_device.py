"""Free memory, and a quantised base: what is refused, what diffusers is asked for, the real library."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.sd3 import setup
from mimicry.tuning.hf_diffusers.sd3.transformer import UNQUANTISED
from mimicry.tuning.hf_diffusers.training.device import (
    check_quantization,
    free_device_bytes,
    loading_arguments,
)
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.sd3.resuming import WEIGHTS, metrics
from tests.tuning.hf_diffusers.studio import Studio, training_run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QUANTISED = ("nf4", "int8")
GIB = 1 << 30


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in in the place of bitsandbytes."""
    version = importlib.metadata.version
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.50.2" if name == "bitsandbytes" else version(name)
    )


def _asked(kind: str) -> Any:
    """Return what is asked of the library for SD3's transformer."""
    return loading_arguments(TuningConfig(quantize_base=kind), torch.bfloat16, UNQUANTISED)[
        "quantization_config"
    ]


def problems(config: TuningConfig, device: torch.device) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        check_quantization(config, device)
    return caught.value.problems


@pytest.mark.parametrize("kind", QUANTISED)
class TestRefusal:
    @pytest.mark.usefixtures("library")
    def test_a_gpu_is_needed(self, kind: str) -> None:
        config = TuningConfig(quantize_base=kind)
        check_quantization(config, CUDA)
        (problem,) = problems(config, CPU)
        assert problem == (
            f"--quantize_base {kind} needs a CUDA GPU, and this is a cpu; leave --quantize_base out"
        )

    def test_so_is_the_library(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        (missing,) = problems(TuningConfig(quantize_base=kind), CUDA)
        assert missing.startswith(f"--quantize_base {kind} needs bitsandbytes, which cannot be imported")
        assert "type pip install bitsandbytes, or leave --quantize_base out" in missing
        assert len(problems(TuningConfig(quantize_base=kind), CPU)) == 2

    def test_it_comes_before_anything_is_written(self, kind: str, studio: Studio, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="needs a CUDA GPU"):
            train(studio, tmp_path / "out", f"--quantize_base={kind}")
        assert not (tmp_path / "out").exists()


class TestArguments:
    def test_none_are_needed_for_16_bits(self) -> None:
        check_quantization(TuningConfig(), CPU)
        assert loading_arguments(TuningConfig(), torch.bfloat16, ()) == {}

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_nf4_computes_in_the_training_precision(self, dtype: torch.dtype) -> None:
        asked = loading_arguments(TuningConfig(quantize_base="nf4"), dtype, ())["quantization_config"]
        assert (asked.load_in_4bit, asked.bnb_4bit_quant_type) == (True, "nf4")
        assert asked.bnb_4bit_compute_dtype == dtype

    @pytest.mark.parametrize("kind", QUANTISED)
    @pytest.mark.usefixtures("library")
    def test_what_a_table_replaces_is_not_quantised(self, kind: str) -> None:
        asked = _asked(kind)
        # A threshold would let the GPU wait in each layer; 4 bits have no use for one.
        assert kind == "nf4" or asked.llm_int8_threshold == 0
        assert asked.load_in_8bit == (kind == "int8")
        assert asked.llm_int8_skip_modules == [
            *("time_text_embed", "norm1", "norm1_context", "norm_out", "proj_out")
        ]


class TestRealLibrary:
    """On the CPU, where bitsandbytes can and diffusers will not: its refusal, and ours, are taken away."""

    FLAGS = (
        *("--mixed_precision=bf16", "--gradient_checkpointing", "--max_train_steps=4"),
        *("--gradient_accumulation_steps=2", "--learning_rate=0.01"),
    )

    @pytest.fixture(autouse=True)
    def _on_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        library = pytest.importorskip("bitsandbytes")
        from diffusers.quantizers.bitsandbytes import bnb_quantizer

        make = library.nn.Linear4bit.__init__

        def make_plainly(layer: Any, *words: Any, **more: Any) -> None:
            make(layer, *words, **more)
            # A layout for inference, which fails for widths that are not a multiple of 64.
            layer.support_avx512bf16_for_cpu = False

        monkeypatch.setattr(library.nn.Linear4bit, "__init__", make_plainly)
        for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
            quantizer = getattr(bnb_quantizer, name)
            monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(setup, "check_quantization", lambda *_: None)
        yield

    @pytest.mark.parametrize("kind", QUANTISED)
    def test_it_trains_the_same_with_a_table_and_without(
        self, kind: str, studio: Studio, tmp_path: Path
    ) -> None:
        flags = (*self.FLAGS, f"--quantize_base={kind}")
        train(studio, tmp_path / "plain", *self.FLAGS)
        train(studio, tmp_path / "without", *flags)
        train(studio, tmp_path / "with", *flags, "--conditioning_table")
        assert (tmp_path / "with" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()
        run = training_run(tmp_path / "with")
        assert run["numerics"]["quantisation"] == kind
        assert run["numerics"]["bitsandbytes"] == importlib.metadata.version("bitsandbytes")
        assert run["recipe"]["options"]["quantize_base"] == kind
        for line, plain in zip(metrics(tmp_path / "with"), metrics(tmp_path / "plain"), strict=True):
            assert line["loss"] != plain["loss"]
            assert line["loss"] == pytest.approx(plain["loss"], rel=0.1)

    @pytest.mark.parametrize(("kind", "bits"), [("nf4", 4), ("int8", 8)])
    def test_the_blocks_are_small_and_the_adapter_in_fp32(
        self, kind: str, bits: int, studio: Studio, tmp_path: Path
    ) -> None:
        transformer = make_trainer(studio, tmp_path, *self.FLAGS, f"--quantize_base={kind}").model.transformer
        layer = transformer.transformer_blocks[0].attn.to_q
        assert layer.base_layer.weight.nbytes * 8 == bits * layer.in_features * layer.out_features
        assert {value.dtype for value in transformer.parameters() if value.requires_grad} == {torch.float32}
        assert type(transformer.transformer_blocks[0].norm1.linear) is torch.nn.Linear
        assert isinstance(transformer, diffusers.SD3Transformer2DModel)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned:UserWarning")  # of the tiny model
@pytest.mark.parametrize("kind", QUANTISED)
def test_on_a_gpu(kind: str, studio: Studio, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = ("--mixed_precision=bf16", "--conditioning_table", f"--quantize_base={kind}")
    train(studio, tmp_path / "out", *flags)
    assert training_run(tmp_path / "out")["numerics"]["quantisation"] == kind


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_free_memory_counts_a_limit_and_what_the_allocator_holds(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fractions = {1: 1.0}

    def fraction(number: Any) -> float:
        # The real one refuses torch.device("cuda"), and the others do not.
        assert isinstance(number, int)
        return fractions[number]

    for name, value in {
        "mem_get_info": (60 * GIB, 80 * GIB),
        "memory_reserved": 12 * GIB,
        "memory_allocated": 10 * GIB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", fraction)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert free_device_bytes(torch.device(device)) == 62 * GIB
    fractions[1] = 0.25
    assert free_device_bytes(torch.device(device)) == 10 * GIB
