"""Attention backends and compiled blocks: what runs, what is refused, what is recorded."""

import os
import shutil
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.training.kernels import attention, attention_names, compile_blocks
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.sd3.wide import Passes, write_transformer
from tests.tuning.hf_diffusers.studio import Studio, training_run

CUDA = torch.device("cuda")
HAS_COMPILER = bool(shutil.which("g++")) and Path(sysconfig.get_path("include"), "Python.h").is_file()


def enabled() -> tuple[bool, bool]:
    """Return whether flash attention and the plain one may be used now."""
    backends: Any = torch.backends.cuda
    return backends.flash_sdp_enabled(), backends.math_sdp_enabled()


class TestAttention:
    @pytest.mark.parametrize(("name", "flash"), [("auto", True), ("flash", True), ("math", False)])
    def test_it_holds_for_the_whole_training(
        self, name: str, flash: bool, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[bool, bool]] = []
        take_step = Trainer.take_step

        def watched(trainer: Trainer, step: int) -> tuple[float, float]:
            seen.append(enabled())
            return take_step(trainer, step)

        monkeypatch.setattr(Trainer, "take_step", watched)
        train(studio, tmp_path, f"--attention_backend={name}", "--max_train_steps=2")
        assert seen == [(flash, name != "flash")] * 2
        recorded = training_run(tmp_path)["numerics"]["attention_backend"]
        assert recorded == ("default" if name == "auto" else name)
        assert enabled() == (True, True)

    @pytest.mark.parametrize("name", ["cudnn", "efficient"])
    def test_one_that_the_device_lacks_is_refused(self, name: str, studio: Studio, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            train(studio, tmp_path, f"--attention_backend={name}")
        (problem,) = caught.value.problems
        assert problem == (
            f"--attention_backend {name} does not run on cpu with --mixed_precision no; "
            f"choose one of auto, flash, math"
        )

    @pytest.mark.parametrize(
        ("capability", "first"), [((8, 0), "flash"), ((8, 9), "flash"), ((9, 0), "cudnn"), ((12, 0), "cudnn")]
    )
    def test_the_best_of_a_gpu_comes_first(
        self, capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        names = attention_names(TuningConfig(), CUDA)
        assert names[0] == first
        # fp32 has neither of the two.
        assert sorted(names) == ["cudnn", "efficient", "flash", "math"]
        assert names[2:] == ("efficient", "math")
        assert attention_names(TuningConfig(attention_backend="math"), CUDA) == ("math",)
        with attention(TuningConfig(attention_backend="math"), CUDA):
            assert enabled() == (False, True)


def plain_and_compiled(
    folder: Path, block_count: int, patch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return results of one pass without compiled blocks and with them."""
    write_transformer(folder, width=128, block_count=block_count, dual=[])
    passes = Passes(folder, [3, 400])
    plain, run = passes.tabled(), Passes.run

    def compiled_run(passes: Passes, model: Any, pooled_projections: Tensor) -> dict[str, Tensor]:
        compile_blocks(model.transformer_blocks)
        return run(passes, model, pooled_projections)

    patch.setattr(Passes, "run", compiled_run)
    torch._dynamo.reset()
    counters.clear()
    return plain, passes.tabled()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
class TestCompile:
    def test_it_needs_a_compiler(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(UsageError, match=r"--compile_blocks needs a C\+\+ compiler; install it, or"):
            train(studio, tmp_path, "--compile_blocks", "--attention_backend=flash")

    def test_many_blocks_are_few_graphs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Numbers that differ from block to block would be a new graph for each, up to a limit."""
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        plain, compiled = plain_and_compiled(tmp_path / "model", 12, monkeypatch)
        assert counters["stats"]["unique_graphs"] == 3
        assert not counters["graph_break"]
        assert plain.keys() == compiled.keys()
        assert torch.equal(plain["output"], compiled["output"])

    @pytest.mark.slow
    @pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler, or no headers of Python")
    def test_a_compiled_block_is_close_to_the_plain_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Set first, so that it is taken back after the test.
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        plain, compiled = plain_and_compiled(tmp_path / "model", 1, monkeypatch)
        assert plain.keys() == compiled.keys()
        for name, value in plain.items():
            error = (value.float() - compiled[name].float()).norm() / value.float().norm().clamp(min=1e-12)
            assert float(error.detach()) < 0.03, name
        cache = tmp_path / "cache" / "mimicry" / "inductor"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache)
        assert any(cache.rglob("*.so"))


def test_a_loop_compiles_only_when_asked(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for flags, expected in (((), False), (("--compile_blocks",), True)):
        trainer = make_trainer(studio, tmp_path, *flags)
        assert training_run(tmp_path)["numerics"]["compile"] is expected
        blocks = trainer.model.transformer.transformer_blocks
        assert {block._compiled_call_impl is not None for block in blocks} == {expected}
