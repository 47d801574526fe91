"""The trainer against a plain computation, and what must not change its numbers."""

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource, ForwardBatch
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.options.config import WEIGHTING_SCHEMES
from tests.tuning.hf_diffusers.sd3.parts import draw_lora_b, make_trainer
from tests.tuning.hf_diffusers.sd3.plain import (
    STEADY,
    PlainTraining,
    assert_close,
    assert_trains_alike,
    plain_sigma,
    trainer_and_plain,
)
from tests.tuning.hf_diffusers.studio import Studio

BATCHES = [(1, 1), (2, 2)]
GRID = [(scheme, precondition, BATCHES[0]) for scheme in WEIGHTING_SCHEMES for precondition in (0, 1)]
GRID += [("logit_normal", 1, BATCHES[1]), ("cosmap", 0, BATCHES[1]), ("sigma_sqrt", 1, (1, 3))]


@pytest.mark.parametrize(("scheme", "precondition", "batch"), GRID)
def test_gradients_and_steps_are_those_of_the_plain_training(
    scheme: str, precondition: int, batch: tuple[int, int], studio: Studio, tmp_path: Path
) -> None:
    trainer, plain = trainer_and_plain(
        studio,
        tmp_path,
        f"--weighting_scheme={scheme}",
        f"--precondition_outputs={precondition}",
        f"--train_batch_size={batch[0]}",
        f"--gradient_accumulation_steps={batch[1]}",
        "--max_grad_norm=0.05",
        *STEADY,
    )
    assert_trains_alike(trainer, plain)


def test_the_first_step_from_the_untouched_beginning(studio: Studio, tmp_path: Path) -> None:
    trainer = make_trainer(studio, tmp_path, "--center_crop", *STEADY)
    plain = PlainTraining(trainer, studio, studio.images)
    assert trainer.take_step(1)[0] == pytest.approx(plain.take_step(1)[0], rel=1e-4)
    assert_close(trainer.model.parameters, plain.lora)


class TestPrecision:
    def test_adapter_and_optimizer_are_fp32_on_a_bf16_base(self, studio: Studio, tmp_path: Path) -> None:
        trainer = make_trainer(studio, tmp_path, "--mixed_precision=bf16")
        trainer.take_step(1)
        assert {value.dtype for value in trainer.model.parameters.values()} == {torch.float32}
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        assert len(states) == 3 * len(trainer.model.parameters)
        assert {value.dtype for value in states} == {torch.float32}
        frozen = {value.dtype for value in trainer.model.transformer.parameters() if not value.requires_grad}
        assert frozen == {torch.bfloat16}

    def test_an_update_too_small_for_bf16_is_not_lost(self, studio: Studio, tmp_path: Path) -> None:
        trainer = make_trainer(studio, tmp_path, "--mixed_precision=bf16", "--learning_rate=0.000001")
        draw_lora_b(trainer.model.parameters)
        before = {name: value.detach().clone() for name, value in trainer.model.parameters.items()}
        trainer.take_step(1)
        for name, value in trainer.model.parameters.items():
            if "transformer_blocks.2.attn.add_q_proj" in name:
                continue  # what the prompt asks for in the last block reaches no output
            moved = value != before[name]
            assert float(moved.float().mean()) > 0.9, name
            assert float((value.bfloat16() != before[name].bfloat16()).float().mean()) < 0.1, name

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_noise_levels_are_fp32(self, precision: str, studio: Studio, tmp_path: Path) -> None:
        trainer = make_trainer(studio, tmp_path, f"--mixed_precision={precision}")
        table = trainer.batches.maker.sigmas
        assert table.sigmas.dtype == table.timesteps.dtype == torch.float32
        assert len(set(table.sigmas.tolist())) == len(table.sigmas) == 1000
        expected = torch.tensor([plain_sigma(index) for index in range(1000)])
        torch.testing.assert_close(table.sigmas, expected)
        torch.testing.assert_close(table.timesteps, 1000 * expected)
        batch = trainer.batches.make(0)
        parts = (batch.latents_BCHW, batch.noise_BCHW, batch.sigmas_B, batch.timesteps_B)
        assert {part.dtype for part in parts} == {torch.float32}
        assert trainer.model.loss(batch).dtype == torch.float32


def test_a_sample_is_the_same_whatever_its_batch(studio: Studio, tmp_path: Path) -> None:
    alone = make_trainer(studio, tmp_path / "alone", "--random_flip")
    together = make_trainer(studio, tmp_path / "together", "--random_flip", "--train_batch_size=3")
    batch = together.batches.make(3)
    for row, index in enumerate((3, 4, 5)):
        single = alone.batches.make(index)
        assert torch.equal(batch.latents_BCHW[row], single.latents_BCHW[0])
        assert torch.equal(batch.noise_BCHW[row], single.noise_BCHW[0])
        assert batch.sigmas_B[row] == single.sigmas_B[0]
        assert batch.timesteps_B[row] == single.timesteps_B[0]


def test_the_device_is_waited_for_once_a_step(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each of these would let it run dry: only the loss and the norm of a whole step are fetched."""
    trainer = make_trainer(studio, tmp_path, "--gradient_accumulation_steps=3", "--train_batch_size=2")
    trainer.take_step(1)
    fetched: list[tuple[str, tuple[int, ...]]] = []
    for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def watched(tensor: Tensor, /, *words: Any, name: str = name, original: Any = original) -> Any:
            fetched.append((name, tuple(tensor.shape)))
            return original(tensor, *words)

        monkeypatch.setattr(torch.Tensor, name, watched)
    trainer.take_step(2)
    assert fetched == [("tolist", (2,))]


def test_what_the_next_step_needs_is_made_before_the_device_is_waited_for(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that on a GPU only the metrics and the optimizer stand between one step and the next."""
    made: dict[int, threading.Event] = defaultdict(threading.Event)
    make, refuse, waited = BatchSource.make, Trainer.refuse_divergence, []

    def watched(batches: BatchSource, first: int) -> ForwardBatch:
        batch = make(batches, first)
        made[first].set()
        return batch

    def wait(trainer: Trainer, step: int, loss: float, grad_norm: float) -> None:
        # The loss has come, the next step has not begun, and this is the thread that will begin it.
        waited.append(step == 3 or (made[2 * step].wait(20) and made[2 * step + 1].wait(20)))
        refuse(trainer, step, loss, grad_norm)

    monkeypatch.setattr(BatchSource, "make", watched)
    monkeypatch.setattr(Trainer, "refuse_divergence", wait)
    flags = ("--dataloader_num_workers=2", "--gradient_accumulation_steps=2", "--max_train_steps=3")
    make_trainer(studio, tmp_path, *flags).run()
    assert waited == [True, True, True]


class TestDropout:
    def masks(self, trainer: Trainer, first: int) -> list[Tensor]:
        """Return what each LoRA drops of its input in the forward pass that begins with sample `first`."""
        dropped = []
        hooks = [
            module.register_forward_hook(lambda _, inputs, output: dropped.append((output == 0).clone()))
            for module in trainer.model.transformer.modules()
            if isinstance(module, torch.nn.Dropout) and module.p
        ]
        trainer.model.transformer.train()
        trainer.model.loss(trainer.batches.make(first))
        for hook in hooks:
            hook.remove()
        return dropped

    def test_it_is_a_function_of_seed_and_sample(self, studio: Studio, tmp_path: Path) -> None:
        flags = ("--lora_dropout=0.25", "--train_batch_size=2")
        trainer = make_trainer(studio, tmp_path / "a", *flags)
        masks = self.masks(trainer, 4)
        assert len(masks) == 23
        share = torch.cat([mask.flatten() for mask in masks]).float().mean()
        assert float(share) == pytest.approx(0.25, abs=0.02)

        def same(others: list[Tensor]) -> bool:
            return all(torch.equal(mask, other) for mask, other in zip(masks, others, strict=True))

        torch.manual_seed(99)
        torch.rand(3)
        assert not same(self.masks(trainer, 6))
        assert same(self.masks(trainer, 4))
        later = make_trainer(studio, tmp_path / "b", *flags, f"--instance_data_dir={studio.mist}")
        assert same(self.masks(later, 4))
        assert not same(self.masks(make_trainer(studio, tmp_path / "c", *flags, "--seed=43"), 4))

    def test_without_it_torchs_own_chance_is_left_alone(self, studio: Studio, tmp_path: Path) -> None:
        trainer = make_trainer(studio, tmp_path)
        torch.manual_seed(5)
        trainer.take_step(1)
        drawn = torch.rand(4)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(
    bad: float, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(studio, tmp_path)
    before = {name: value.detach().clone() for name, value in trainer.model.parameters.items()}
    batch_loss = AdaptedTransformer.loss
    monkeypatch.setattr(AdaptedTransformer, "loss", lambda model, batch: batch_loss(model, batch) * bad)
    with pytest.raises(TrainingFailed, match=r"the loss of step 1 is (nan|inf).*--learning-rate"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.parameters.items())
