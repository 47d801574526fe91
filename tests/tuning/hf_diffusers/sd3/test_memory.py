"""Which blocks are checkpointed: as few as memory allows, and without a trace in the result."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3 import memory
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.memory import choose_checkpointed_blocks
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig
from tests.tuning.hf_diffusers.sd3.parts import draw_lora_b, make_trainer, train
from tests.tuning.hf_diffusers.studio import Studio, training_run

GIB = 1 << 30
WEIGHTS = "pytorch_lora_weights.safetensors"
# Stable Diffusion 3.5 Large at 1024 x 1024, rank 16.
LARGE: dict[str, Any] = {
    "stream_values": 4250 * 2432,
    "value_bytes": 2,
    "kept": [27] * 38,
    "trained_parameters": 23_580_672,
}


def large(free_gib: float, **changes: Any) -> int:
    return choose_checkpointed_blocks(int(free_gib * GIB), **(LARGE | changes))


class TestChoice:
    @pytest.mark.parametrize("blocks", [0, 8, 16, 24, 38])
    def test_it_follows_what_was_counted(self, blocks: int) -> None:
        """Counted: 26.4 bytes a value for a block, and 2 for its input where it is checkpointed."""
        beside = 0.5 + 20 * LARGE["trained_parameters"] / GIB
        activations = (65 + 2 * 38 + 26.4 * blocks) * LARGE["stream_values"] / GIB
        assert blocks - 1 <= 38 - large(beside + activations) <= blocks

    def test_blocks_with_a_second_attention_come_first_and_keep_more(self) -> None:
        """As in Stable Diffusion 3.5 Medium, whose first 13 blocks have one."""
        medium = LARGE | {"kept": [39] * 13 + [27] * 11, "stream_values": 4250 * 1536}
        beside = GIB // 2 + 20 * LARGE["trained_parameters"] + (65 + 2 * 24) * 4250 * 1536
        assert choose_checkpointed_blocks(beside + 11 * 27 * 4250 * 1536, **medium) == 13
        assert choose_checkpointed_blocks(beside + (11 * 27 + 38) * 4250 * 1536, **medium) == 13
        assert choose_checkpointed_blocks(beside + (11 * 27 + 39) * 4250 * 1536, **medium) == 12
        assert choose_checkpointed_blocks(beside + 13 * 39 * 4250 * 1536, **medium) == 8

    def test_all_and_none(self) -> None:
        assert large(120) == 0
        assert large(0) == large(-5) == 38

    def test_more_memory_never_means_more_checkpointing(self) -> None:
        counts = [large(quarters / 4) for quarters in range(100)]
        assert counts == sorted(counts, reverse=True)
        assert set(counts) == set(range(39))

    @pytest.mark.parametrize(
        "change",
        [
            {"value_bytes": 4},
            {"stream_values": 2 * 4250 * 2432},
            {"trained_parameters": 400_000_000},
            {"keeps_inputs": True},
            {"kept": [41] * 38},
        ],
        ids=["fp32", "batch of 2", "high rank", "int8", "dropout"],
    )
    def test_what_needs_more_keeps_less(self, change: dict[str, Any]) -> None:
        assert large(10, **change) > large(10)


def test_int8_keeps_inputs_of_checkpointed_blocks_too() -> None:
    """What bitsandbytes keeps there, 18 bytes a value, checkpointing does not free."""
    all_blocks = 38 * 18 * LARGE["stream_values"] / GIB
    assert large(20 + all_blocks, keeps_inputs=True) == large(20)


def test_dropout_keeps_more(studio: Studio, tmp_path: Path) -> None:
    block = make_trainer(studio, tmp_path).model.transformer.transformer_blocks[0]
    without, dropping = (memory.kept_per_value(block, TuningConfig(lora_dropout=p)) for p in (0.0, 0.1))
    assert dropping > without


class TestOutOfMemory:
    """One block, once, has no room; after that more of them are checkpointed."""

    @pytest.fixture
    def no_room_once(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        calls: Counter[str] = Counter()
        loss = AdaptedTransformer.loss

        def short_of_memory(model: AdaptedTransformer, batch: ForwardBatch) -> Tensor:
            calls["loss"] += 1
            if calls["loss"] == 4:
                # The second pass of the second step: gradients of the first one are there.
                assert any(value.grad is not None for value in model.parameters.values())
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
            return loss(model, batch)

        monkeypatch.setattr(AdaptedTransformer, "loss", short_of_memory)
        return calls

    FLAGS = ("--max_train_steps=3", "--gradient_accumulation_steps=2", "--lora_dropout=0.3")

    def test_the_step_is_taken_again_with_more_checkpointed(
        self, studio: Studio, tmp_path: Path, no_room_once: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags = (*self.FLAGS, "--gradient_checkpointing", "--checkpointed_blocks=1")
        train(studio, tmp_path / "short", *flags)
        assert no_room_once["loss"] == 8
        run = training_run(tmp_path / "short")
        assert run["memory"]["checkpointed_blocks"] == 2
        assert run["warnings"] == ["out of GPU memory: 2 blocks are checkpointed from now on"]
        monkeypatch.undo()
        train(studio, tmp_path / "plenty", *flags)
        assert (tmp_path / "short" / WEIGHTS).read_bytes() == (tmp_path / "plenty" / WEIGHTS).read_bytes()
        draws = [training_run(tmp_path / name)["draws_sha256"] for name in ("short", "plenty")]
        assert draws[0] == draws[1]

    @pytest.mark.parametrize("flags", [(), ("--gradient_checkpointing", "--checkpointed_blocks=3")])
    def test_it_is_an_error_where_no_more_can_be_checkpointed(
        self, flags: tuple[str, ...], studio: Studio, tmp_path: Path, no_room_once: Counter[str]
    ) -> None:
        with pytest.raises(TrainingFailed, match=r"out of GPU memory: .* --checkpointed-blocks"):
            train(studio, tmp_path, *self.FLAGS, *flags)
        assert training_run(tmp_path)["status"] == "failed"


def gradients(studio: Studio, folder: Path, *flags: str, dropout: float = 0.0) -> dict[str, Tensor]:
    trainer = make_trainer(studio, folder, "--gradient_checkpointing", *flags)
    draw_lora_b(trainer.model.parameters)
    trainer.model.transformer.train()
    for module in trainer.model.transformer.modules():
        if dropout and hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(dropout)
    torch.manual_seed(0)
    loss = trainer.model.loss(trainer.batches.make(0))
    torch.autograd.backward(loss)
    found = {name: value.grad for name, value in trainer.model.parameters.items() if value.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_number_changes_no_bit(dropout: float, precision: str, studio: Studio, tmp_path: Path) -> None:
    words = (f"--mixed_precision={precision}", "--train_batch_size=2")
    results = [
        gradients(studio, tmp_path / str(count), *words, f"--checkpointed_blocks={count}", dropout=dropout)
        for count in range(4)
    ]
    assert len(results[0]) > 40
    for other in results[1:]:
        assert results[0].keys() == other.keys()
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def runs_of_blocks(studio: Studio, folder: Path, *flags: str) -> list[int]:
    """Return how often each block ran in one forward and backward pass."""
    trainer = make_trainer(studio, folder, *flags)
    counts: Counter[int] = Counter()
    for number, block in enumerate(trainer.model.transformer.transformer_blocks):
        block.register_forward_pre_hook(lambda *_, number=number: counts.update([number]))
    trainer.take_step(1)
    return [counts[number] for number in range(3)]


def test_the_first_blocks_run_again_in_the_backward_pass(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default those for which memory is too short: on the CPU, more than half of what is free."""
    on = "--gradient_checkpointing"
    assert runs_of_blocks(studio, tmp_path, on, "--checkpointed_blocks=0") == [1, 1, 1]
    assert runs_of_blocks(studio, tmp_path, on, "--checkpointed_blocks=1") == [2, 1, 1]
    assert runs_of_blocks(studio, tmp_path, on, "--checkpointed_blocks=9") == [2, 2, 2]
    assert runs_of_blocks(studio, tmp_path, on, "--checkpointed_blocks=3") == [2, 2, 2]
    assert runs_of_blocks(studio, tmp_path, on) == [1, 1, 1]
    monkeypatch.setattr(memory, "free_host_bytes", lambda: GIB)
    assert runs_of_blocks(studio, tmp_path, on) == [2, 2, 2]
    assert runs_of_blocks(studio, tmp_path, "--checkpointed_blocks=2") == [1, 1, 1]


def test_it_is_logged_and_recorded(
    studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max_train_steps=2", "--gradient_checkpointing")
    train(studio, tmp_path / "two", *flags, "--checkpointed_blocks=2")
    assert "checkpointing 2 of 3 blocks" in capsys.readouterr().out
    train(studio, tmp_path / "all", *flags, "--checkpointed_blocks=3")
    assert "checkpointing 3 of 3 blocks" in capsys.readouterr().out
    runs = [training_run(tmp_path / name) for name in ("two", "all")]
    assert [run["memory"]["checkpointed_blocks"] for run in runs] == [2, 3]
    assert runs[0]["recipe_hash"] == runs[1]["recipe_hash"]
    assert (tmp_path / "two" / WEIGHTS).read_bytes() == (tmp_path / "all" / WEIGHTS).read_bytes()


def test_on_a_gpu_free_memory_decides(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(studio, tmp_path, "--gradient_checkpointing", "--train_batch_size=2")
    asked: dict[str, Any] = {}

    def choose(free_bytes: int, **facts: Any) -> int:
        asked.update(facts, free_bytes=free_bytes)
        return 1

    monkeypatch.setattr(memory, "free_device_bytes", lambda device: 7 * GIB)
    monkeypatch.setattr(memory, "choose_checkpointed_blocks", choose)
    tokens = memory.image_tokens(BaseModel(studio.base_model), 32) + 154
    transformer, cuda = trainer.model.transformer, torch.device("cuda")
    assert memory.checkpoint_blocks(transformer, trainer.config, cuda, batch_size=2, token_count=tokens) == 1
    assert asked == {
        "free_bytes": 7 * GIB,
        # 32 pixels are 8 in latents and 4 patches: 16 tokens, and a width of 96.
        "stream_values": 2 * (16 + 154) * 96,
        "value_bytes": 4,
        "kept": [27, 27, 27],
        "trained_parameters": sum(value.numel() for value in trainer.model.parameters.values()),
        "keeps_inputs": False,
        "shared": False,
    }
