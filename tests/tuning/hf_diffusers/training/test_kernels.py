"""Attention backends and compiled blocks: what runs, what is refused, what is recorded."""

import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch._dynamo.utils import counters

from mimicry.common.errors import UsageError
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.memory import checkpoint_first
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.training import kernels
from mimicry.tuning.hf_diffusers.training.device import DTYPES
from mimicry.tuning.hf_diffusers.training.kernels import (
    AttentionChoice,
    AttentionShape,
    attention,
    attention_error,
    attention_names,
    choose_attention,
    compile_blocks,
    compile_problem,
)
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import make_trainer, train
from tests.tuning.hf_diffusers.sd3.wide import POOLED_WIDTH, TIMESTEPS, Passes, write_transformer
from tests.tuning.hf_diffusers.studio import Studio, training_run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HAS_COMPILER = bool(shutil.which("g++")) and Path(sysconfig.get_path("include"), "Python.h").is_file()


def enabled() -> tuple[bool, bool]:
    """Return whether flash attention and the plain one may be used now."""
    backends: Any = torch.backends.cuda
    return backends.flash_sdp_enabled(), backends.math_sdp_enabled()


Gpu = Callable[[tuple[int, int], int | None], None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A function that lets torch see a GPU of this capability, and this version of cuDNN."""

    def see(capability: tuple[int, int], cudnn: int | None) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)

    return see


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
        ("capability", "cudnn", "first"),
        [
            ((8, 0), 91600, "flash"),
            ((8, 9), 91600, "flash"),
            ((9, 0), 91002, "flash"),
            ((9, 0), 91500, "flash"),
            ((9, 0), 91501, "cudnn"),
            ((9, 0), 91600, "cudnn"),
            ((9, 0), None, "flash"),
            ((10, 3), 91600, "cudnn"),
            ((12, 0), 91600, "flash"),
        ],
    )
    def test_cudnn_comes_first_where_it_is_right_and_never_else(
        self, capability: tuple[int, int], cudnn: int | None, first: str, gpu: Gpu
    ) -> None:
        gpu(capability, cudnn)
        rest = ("flash", "efficient", "math")
        assert attention_names(TuningConfig(), CUDA) == (("cudnn", *rest) if first == "cudnn" else rest)
        assert attention_names(TuningConfig(deterministic=True), CUDA) == rest
        assert attention_names(TuningConfig(attention_backend="math"), CUDA) == ("math",)
        with attention(TuningConfig(attention_backend="math"), CUDA):
            assert enabled() == (False, True)

    def test_an_amd_gpu_has_no_cudnn(self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu((9, 4), 3_002_000)
        monkeypatch.setattr(torch.version, "hip", "7.0")
        assert attention_names(TuningConfig(), CUDA) == ("flash", "efficient", "math")


class TestCheckedAttention:
    """The check of a backend by its numbers, with flash attention on the CPU in the place of a GPU's."""

    SHAPE = AttentionShape(batch_size=2, head_count=3, token_count=26, head_width=16)

    @pytest.fixture(autouse=True)
    def _two_to_try(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "attention_names", self.names)

    @staticmethod
    def names(config: TuningConfig, _: torch.device) -> tuple[str, ...]:
        asked = config.attention_backend
        return ("flash", "math") if asked == "auto" else (asked,)

    @pytest.fixture
    def spoil(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
        """Put a change to the output of every backend but "math"."""
        right: Any = F.scaled_dot_product_attention

        def spoil(change: Callable[[Tensor], Tensor]) -> None:
            def wrong(*inputs: Tensor, **more: Any) -> Tensor:
                output: Tensor = right(*inputs, **more)
                return output if enabled()[1] else change(output)

            monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)

        return spoil

    @pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
    def test_a_right_one_is_taken(self, precision: str) -> None:
        choice = choose_attention(TuningConfig(mixed_precision=precision), CPU, self.SHAPE)
        assert choice == AttentionChoice(("flash", "math"))
        error = attention_error("flash", self.SHAPE, CPU, DTYPES[precision])
        assert error is not None
        assert 0 < error < 0.01

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda output: output * 1.1,
                "is wrong by 10% on cpu with --mixed_precision bf16, for 26 tokens",
            ),
            (lambda output: output * math.nan, "returns numbers that are not finite on cpu"),
            # Right values, and gradients that are not.
            (lambda output: output.detach() + 1.2 * (output - output.detach()), "is wrong by 20% on cpu"),
            # A single token of a single head.
            (lambda output: output * at_one(output, 0.0), "is wrong by "),
        ],
        ids=["scaled", "nan", "gradient", "one token"],
    )
    def test_a_wrong_one_is_left_out_or_refused(
        self, change: Any, said: str, spoil: Callable[[Any], None]
    ) -> None:
        spoil(change)
        choice = choose_attention(TuningConfig(), CPU, self.SHAPE)
        assert choice.names == ("math",)
        (warning,) = choice.warnings
        assert warning.startswith(f"attention by flash {said}")
        asked = choose_attention(TuningConfig(attention_backend="flash"), CPU, self.SHAPE)
        assert asked.problem is not None
        assert asked.problem.startswith(f"--attention_backend flash {said}")
        assert asked.problem.endswith("; choose one of auto, math")

    def test_the_record_says_so(self, spoil: Callable[[Any], None], studio: Studio, tmp_path: Path) -> None:
        spoil(lambda output: output * 1.5)
        run = recorded(studio, tmp_path)
        assert run["numerics"]["attention_backend"] == "math"
        (warning,) = run["warnings"]
        assert warning.startswith("attention by flash is wrong by 50%")

    def test_one_that_does_not_run_is_left_out_in_silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "attention_names", lambda *_: ("cudnn", "efficient", "flash", "math"))
        assert choose_attention(TuningConfig(), CPU, self.SHAPE) == AttentionChoice(("flash", "math"))

    def test_too_little_memory_is_no_verdict(self, spoil: Callable[[Any], None]) -> None:
        def change(output: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        spoil(change)
        with pytest.raises(torch.OutOfMemoryError):
            choose_attention(TuningConfig(), CPU, self.SHAPE)

    @pytest.mark.parametrize(
        "flags",
        [("--train_batch_size=2", "--max_sequence_length=100"), ("--attention_backend=flash",)],
    )
    def test_it_has_the_shape_of_training(
        self, flags: tuple[str, ...], studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checked: list[Any] = []
        trained: list[Any] = []
        right: Any = F.scaled_dot_product_attention

        def watched(query: Tensor, *rest: Tensor, **more: Any) -> Tensor:
            # Text encoders attend too, and a reference has one head.
            if query.requires_grad and query.shape[1] > 1:
                (trained if under_way else checked).append((tuple(query.shape), query.dtype))
            output: Tensor = right(query, *rest, **more)
            return output

        def loss(model: AdaptedTransformer, batch: ForwardBatch) -> Tensor:
            under_way.append(True)
            return right_loss(model, batch)

        under_way: list[bool] = []
        right_loss = AdaptedTransformer.loss
        monkeypatch.setattr(AdaptedTransformer, "loss", loss)
        monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
        train(studio, tmp_path, *flags, "--mixed_precision=bf16", "--lora_layers=attn.to_q")
        assert len(checked) == 1
        assert set(checked) == set(trained)


def at_one(output: Tensor, factor: float) -> Tensor:
    """Return ones, and `factor` for the last token of the last head."""
    factors = torch.ones_like(output)
    factors[-1, -1, -1] = factor
    return factors


def recorded(studio: Studio, folder: Path) -> dict[str, Any]:
    """Return what is recorded of a training that has taken no step yet."""
    make_trainer(studio, folder)
    return training_run(folder)


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


def predict(model: Any, count: int) -> Tensor:
    """Return what the transformer makes of `count` samples, the same in each call."""
    generator = torch.Generator().manual_seed(2)
    latents, sequence, pooled = (
        torch.randn(count, *shape, generator=generator).bfloat16()
        for shape in ((16, 4, 4), (4, 128), (POOLED_WIDTH,))
    )
    output: Tensor = model(
        hidden_states=latents,
        encoder_hidden_states=sequence,
        pooled_projections=pooled,
        timestep=TIMESTEPS[:count],
        return_dict=False,
    )[0]
    return output


def validate(model: Any) -> Tensor:
    """Return what the transformer makes of a single sample in evaluation mode; it is in training then."""
    model.eval()
    with torch.no_grad():
        output = predict(model, 1)
    model.train()
    return output


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
class TestCompile:
    def test_it_needs_a_compiler(
        self, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(UsageError, match=r"--compile_blocks needs a C\+\+ compiler; install it, or"):
            train(studio, tmp_path, "--compile_blocks", "--attention_backend=flash")

    @pytest.mark.parametrize(
        ("device", "missing", "said"),
        [
            (CUDA, ("triton",), "needs triton; install it"),
            (CUDA, ("gcc", "clang"), "needs a C compiler (gcc or clang); install it"),
            (
                CUDA,
                ("triton", "gcc", "clang", "Python.h"),
                "needs triton and a C compiler (gcc or clang) and the",
            ),
            (CPU, ("Python.h",), "needs the headers of Python (Python.h); install it"),
            (CPU, ("triton", "gcc", "clang"), None),
        ],
    )
    def test_what_is_missing_is_named(
        self,
        device: torch.device,
        missing: tuple[str, ...],
        said: str | None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if "Python.h" not in missing:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
        monkeypatch.setattr(shutil, "which", lambda name: None if name in missing else f"/bin/{name}")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
        for name in ("CC", "CXX"):
            monkeypatch.delenv(name, raising=False)
        problem = compile_problem(TuningConfig(compile_blocks=True), device)
        assert problem is None if said is None else said in str(problem)
        assert compile_problem(TuningConfig(), device) is None

    @pytest.mark.parametrize(
        ("dual", "batch_size", "lora_blocks", "in_a_thread"),
        [((), 4, None, False), ((0, 1), 4, None, False), ((), 4, "1", False), ((0, 1), 4, "1", True)],
        ids=["Large", "Medium", "Large, one block trained", "Medium, one block trained, in a thread"],
    )
    def test_training_and_validation_never_reach_the_limit(
        self,
        dual: tuple[int, ...],
        batch_size: int,
        lora_blocks: str | None,
        in_a_thread: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Settings of torch hold for one thread alone, and a GPU's backward pass has one of its own."""
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        write_transformer(tmp_path, width=64, block_count=4, dual=dual)
        torch._dynamo.reset()
        counters.clear()
        model: Any = SD3Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        add_adapter(model, TuningConfig(rank=4, lora_blocks=lora_blocks))
        checkpoint_first(model, 1)
        plain = validate(model)
        compile_blocks(model.transformer_blocks)

        def run() -> None:
            assert torch.equal(validate(model), plain)
            torch.autograd.backward(predict(model, batch_size).float().square().mean())

        if in_a_thread:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(run).result()
        else:
            run()
        assert not counters["graph_break"]

    def test_a_torch_without_the_argument_has_a_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def compile_as_before(model: Any, *, fullgraph: bool = False, dynamic: bool | None = None) -> Any:
            return model

        monkeypatch.setattr(torch, "compile", compile_as_before)
        settings: Any = torch._dynamo.config
        for before, after in ((8, 64), (100, 100)):
            # Undone by monkeypatch, the setting would be gone for the tests that follow.
            with settings.patch(recompile_limit=before):
                compile_blocks([torch.nn.Linear(2, 2)])
                assert settings.recompile_limit == after
                # All releases so far have one name or the other for it.
                assert settings.cache_size_limit == after
                assert settings.accumulated_recompile_limit >= 64
        assert settings.recompile_limit == 8

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
