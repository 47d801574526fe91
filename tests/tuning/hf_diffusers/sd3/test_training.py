"""The loop against a plain computation: no peft, no accelerate, no formula of ours."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.common.images import read_rgb
from mimicry.tuning.config import WEIGHTING_SCHEMES
from mimicry.tuning.hf_diffusers.sd3.batches import load_sigmas
from mimicry.tuning.hf_diffusers.sd3.draws import normal
from mimicry.tuning.hf_diffusers.sd3.flow_matching import draw_timestep_index
from mimicry.tuning.hf_diffusers.sd3.latents import cut, to_pixels
from mimicry.tuning.hf_diffusers.sd3.training import Loop
from tests.tuning.hf_diffusers.sd3.parts import draw_lora_b, make_loop
from tests.tuning.hf_diffusers.studio import Studio

SHIFT = 3.0
# AdamW divides by the gradient itself: a large epsilon keeps rounding errors from becoming steps.
STEADY = ("--adam_epsilon=0.001", "--learning_rate=0.01", "--adam_weight_decay=0.1")


def plain_sigma(index: int) -> float:
    """Return the noise level of a row: thousandths, highest first, shifted towards the noise."""
    even = (1000 - index) / 1000
    return SHIFT * even / (1 + (SHIFT - 1) * even)


def plain_weight(scheme: str, sigma: float) -> float:
    return {
        "sigma_sqrt": 1 / sigma**2,
        "cosmap": 2 / (math.pi * (1 - 2 * sigma + 2 * sigma * sigma)),
    }.get(scheme, 1.0)


@dataclass
class PlainTraining:
    """The same training, written down as it would be in a text book: W + B A, one sample at a time."""

    loop: Loop
    studio: Studio
    lora: dict[str, Tensor] = field(init=False)
    first_moments: dict[str, Tensor] = field(init=False)
    second_moments: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        folder = self.studio.base_model
        self.config = self.loop.setup.job.config
        self.transformer: Any = SD3Transformer2DModel.from_pretrained(folder / "transformer").train()
        self.vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
        self.frozen = {name: value.detach() for name, value in self.transformer.named_parameters()}
        with torch.no_grad():
            self.prompt, _, self.pooled, _ = StableDiffusion3Pipeline.from_pretrained(folder).encode_prompt(
                self.config.instance_prompt,
                prompt_2=None,
                prompt_3=None,
                do_classifier_free_guidance=False,
                max_sequence_length=self.config.max_sequence_length,
            )
        self.lora = {
            name: value.detach().clone().requires_grad_() for name, value in self.loop.parameters.items()
        }
        self.first_moments = {name: torch.zeros_like(value) for name, value in self.lora.items()}
        self.second_moments = {name: torch.zeros_like(value) for name, value in self.lora.items()}

    def gradients(self, step: int) -> tuple[float, dict[str, Tensor]]:
        """Return the loss of a step, and the gradient of its mean over all samples of the step."""
        count = self.config.train_batch_size * self.config.gradient_accumulation_steps
        losses = [self.sample_loss(index) for index in range((step - 1) * count, step * count)]
        loss = torch.stack(losses).mean()
        gradients = torch.autograd.grad(loss, list(self.lora.values()))
        return float(loss.detach()), dict(zip(self.lora, gradients, strict=True))

    def sample_loss(self, index: int) -> Tensor:
        """Return the loss of one sample; image and level are those that the plan has for it."""
        config = self.config
        sample = self.loop.setup.samples.sample(index)
        path = sorted(self.studio.images.iterdir())[sample.image]
        with torch.no_grad():
            posterior = self.vae.encode(
                to_pixels(cut(read_rgb(path), sample.view, config.resolution))
            ).latent_dist
        drawn = posterior.mean + posterior.std * self.draw("vae", index, sample.stem, posterior.mean)
        clean = (drawn - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        noise = self.draw("noise", index, sample.stem, clean)
        sigma = plain_sigma(draw_timestep_index(config, sample, 1000))
        noisy = (1 - sigma) * clean + sigma * noise
        velocity = torch.func.functional_call(
            self.transformer,
            self.adapted_weights(),
            kwargs={
                "hidden_states": noisy,
                "encoder_hidden_states": self.prompt,
                "pooled_projections": self.pooled,
                "timestep": torch.tensor([1000 * sigma]),
                "return_dict": False,
            },
        )[0]
        error = velocity - (noise - clean)
        if config.precondition_outputs:
            error = (velocity * -sigma + noisy) - clean
        loss: Tensor = plain_weight(config.weighting_scheme, sigma) * (error**2).mean()
        return loss

    def adapted_weights(self) -> dict[str, Tensor]:
        weights = dict(self.frozen)
        for name in self.lora:
            if name.endswith(".lora_A.default.weight"):
                module = name.removesuffix(".lora_A.default.weight")
                up, down = self.lora[f"{module}.lora_B.default.weight"], self.lora[name]
                weights[f"{module}.weight"] = self.frozen[f"{module}.weight"] + up @ down
        return weights

    def draw(self, purpose: str, index: int, stem: str, like: Tensor) -> Tensor:
        return torch.from_numpy(normal(self.config.seed, purpose, index, stem, tuple(like.shape[1:])))[None]

    def take_step(self, step: int) -> tuple[float, float]:
        """Take a step of AdamW (Loshchilov and Hutter 2019) with clipped gradients."""
        config = self.config
        loss, gradients = self.gradients(step)
        norm = math.sqrt(sum(float((value**2).sum()) for value in gradients.values()))
        for name, value in self.lora.items():
            gradient = gradients[name] * min(1.0, config.max_grad_norm / norm)
            first, second = self.first_moments[name], self.second_moments[name]
            first.mul_(config.adam_beta1).add_((1 - config.adam_beta1) * gradient)
            second.mul_(config.adam_beta2).add_((1 - config.adam_beta2) * gradient**2)
            mean = first / (1 - config.adam_beta1**step)
            spread = (second / (1 - config.adam_beta2**step)).sqrt()
            decayed = value.detach() * (1 - config.learning_rate * config.adam_weight_decay)
            moved = decayed - config.learning_rate * mean / (spread + config.adam_epsilon)
            self.lora[name] = moved.requires_grad_()
        return loss, norm


def loop_and_plain(studio: Studio, folder: Path, *flags: str) -> tuple[Loop, PlainTraining]:
    loop = make_loop(studio, folder, "--center_crop", *flags)
    draw_lora_b(loop.parameters)
    loop.transformer.train()
    return loop, PlainTraining(loop, studio)


def assert_close(ours: dict[str, Any], plain: dict[str, Tensor]) -> None:
    assert set(ours) == set(plain)
    for name, expected in plain.items():
        value = expected.detach()
        scale = float(value.abs().max())
        torch.testing.assert_close(ours[name], value, atol=3e-5 * scale, rtol=1e-3, msg=name)


BATCHES = [(1, 1), (2, 2)]
GRID = [(scheme, precondition, BATCHES[0]) for scheme in WEIGHTING_SCHEMES for precondition in (0, 1)]
GRID += [("logit_normal", 1, BATCHES[1]), ("cosmap", 0, BATCHES[1]), ("sigma_sqrt", 1, (1, 3))]


@pytest.mark.parametrize(("scheme", "precondition", "batch"), GRID)
def test_gradients_and_steps_are_those_of_the_plain_training(
    scheme: str, precondition: int, batch: tuple[int, int], studio: Studio, tmp_path: Path
) -> None:
    loop, plain = loop_and_plain(
        studio,
        tmp_path,
        f"--weighting_scheme={scheme}",
        f"--precondition_outputs={precondition}",
        f"--train_batch_size={batch[0]}",
        f"--gradient_accumulation_steps={batch[1]}",
        "--max_grad_norm=0.05",
        *STEADY,
    )
    for first in range(0, batch[0] * batch[1], batch[0]):
        torch.autograd.backward(loop.batch_loss(loop.make_batch(first)) / batch[1])
    gradients = {name: value.grad for name, value in loop.parameters.items()}
    assert_close(gradients, plain.gradients(1)[1])
    loop.optimizer.zero_grad()

    for step in (1, 2):
        loss, norm = loop.take_step(step)
        plain_loss, plain_norm = plain.take_step(step)
        assert loss == pytest.approx(plain_loss, rel=1e-4)
        assert norm == pytest.approx(plain_norm, rel=1e-3)
        assert norm > 0.05  # so that clipping was at work
        assert_close(loop.parameters, plain.lora)


def test_the_first_step_from_the_untouched_beginning(studio: Studio, tmp_path: Path) -> None:
    loop = make_loop(studio, tmp_path, "--center_crop", *STEADY)
    plain = PlainTraining(loop, studio)
    assert loop.take_step(1)[0] == pytest.approx(plain.take_step(1)[0], rel=1e-4)
    assert_close(loop.parameters, plain.lora)


class TestPrecision:
    def test_adapter_and_optimizer_are_fp32_on_a_bf16_base(self, studio: Studio, tmp_path: Path) -> None:
        loop = make_loop(studio, tmp_path, "--mixed_precision=bf16")
        loop.take_step(1)
        assert {value.dtype for value in loop.parameters.values()} == {torch.float32}
        states = [value for state in loop.optimizer.state.values() for value in state.values()]
        assert len(states) == 3 * len(loop.parameters)
        assert {value.dtype for value in states} == {torch.float32}
        frozen = {value.dtype for value in loop.transformer.parameters() if not value.requires_grad}
        assert frozen == {torch.bfloat16}

    def test_an_update_too_small_for_bf16_is_not_lost(self, studio: Studio, tmp_path: Path) -> None:
        loop = make_loop(studio, tmp_path, "--mixed_precision=bf16", "--learning_rate=0.000001")
        draw_lora_b(loop.parameters)
        before = {name: value.detach().clone() for name, value in loop.parameters.items()}
        loop.take_step(1)
        for name, value in loop.parameters.items():
            if "transformer_blocks.2.attn.add_q_proj" in name:
                continue  # what the prompt asks for in the last block reaches no output
            moved = value != before[name]
            assert float(moved.float().mean()) > 0.9, name
            assert float((value.bfloat16() != before[name].bfloat16()).float().mean()) < 0.1, name

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_noise_levels_are_fp32(self, precision: str, studio: Studio, tmp_path: Path) -> None:
        loop = make_loop(studio, tmp_path, f"--mixed_precision={precision}")
        table = load_sigmas(loop.setup)
        assert table.sigmas.dtype == table.timesteps.dtype == torch.float32
        assert len(set(table.sigmas.tolist())) == len(table.sigmas) == 1000
        expected = torch.tensor([plain_sigma(index) for index in range(1000)])
        torch.testing.assert_close(table.sigmas, expected)
        torch.testing.assert_close(table.timesteps, 1000 * expected)
        batch = loop.make_batch(0)
        parts = (batch.latents_BCHW, batch.noise_BCHW, batch.sigmas_B, batch.timesteps_B)
        assert {part.dtype for part in parts} == {torch.float32}
        assert loop.batch_loss(batch).dtype == torch.float32


def test_a_sample_is_the_same_whatever_its_batch(studio: Studio, tmp_path: Path) -> None:
    alone = make_loop(studio, tmp_path / "alone", "--random_flip")
    together = make_loop(studio, tmp_path / "together", "--random_flip", "--train_batch_size=3")
    batch = together.make_batch(3)
    for row, index in enumerate((3, 4, 5)):
        single = alone.make_batch(index)
        assert torch.equal(batch.latents_BCHW[row], single.latents_BCHW[0])
        assert torch.equal(batch.noise_BCHW[row], single.noise_BCHW[0])
        assert batch.sigmas_B[row] == single.sigmas_B[0]
        assert batch.timesteps_B[row] == single.timesteps_B[0]


def test_the_device_is_waited_for_once_a_step(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each of these would let it run dry: only the loss and the norm of a whole step are fetched."""
    loop = make_loop(studio, tmp_path, "--gradient_accumulation_steps=3", "--train_batch_size=2")
    loop.take_step(1)
    fetched: list[tuple[str, tuple[int, ...]]] = []
    for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def watched(tensor: Tensor, /, *words: Any, name: str = name, original: Any = original) -> Any:
            fetched.append((name, tuple(tensor.shape)))
            return original(tensor, *words)

        monkeypatch.setattr(torch.Tensor, name, watched)
    loop.take_step(2)
    assert fetched == [("tolist", (2,))]


class TestDropout:
    def masks(self, loop: Loop, first: int) -> list[Tensor]:
        """Return what each LoRA drops of its input in the forward pass that begins with sample `first`."""
        dropped = []
        hooks = [
            module.register_forward_hook(lambda _, inputs, output: dropped.append((output == 0).clone()))
            for module in loop.transformer.modules()
            if isinstance(module, torch.nn.Dropout) and module.p
        ]
        loop.transformer.train()
        loop.batch_loss(loop.make_batch(first))
        for hook in hooks:
            hook.remove()
        return dropped

    def test_it_is_a_function_of_seed_and_sample(self, studio: Studio, tmp_path: Path) -> None:
        flags = ("--lora_dropout=0.25", "--train_batch_size=2")
        loop = make_loop(studio, tmp_path / "a", *flags)
        masks = self.masks(loop, 4)
        assert len(masks) == 23
        share = torch.cat([mask.flatten() for mask in masks]).float().mean()
        assert float(share) == pytest.approx(0.25, abs=0.02)

        def same(others: list[Tensor]) -> bool:
            return all(torch.equal(mask, other) for mask, other in zip(masks, others, strict=True))

        torch.manual_seed(99)
        torch.rand(3)
        assert not same(self.masks(loop, 6))
        assert same(self.masks(loop, 4))
        later = make_loop(studio, tmp_path / "b", *flags, f"--instance_data_dir={studio.mist}")
        assert same(self.masks(later, 4))
        assert not same(self.masks(make_loop(studio, tmp_path / "c", *flags, "--seed=43"), 4))

    def test_without_it_torchs_own_chance_is_left_alone(self, studio: Studio, tmp_path: Path) -> None:
        loop = make_loop(studio, tmp_path)
        torch.manual_seed(5)
        loop.take_step(1)
        drawn = torch.rand(4)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(
    bad: float, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(studio, tmp_path)
    before = {name: value.detach().clone() for name, value in loop.parameters.items()}
    batch_loss = Loop.batch_loss
    monkeypatch.setattr(Loop, "batch_loss", lambda loop, batch: batch_loss(loop, batch) * bad)
    with pytest.raises(TrainingFailed, match=r"the loss of step 1 is (nan|inf).*--learning-rate"):
        loop.run()
    assert all(torch.equal(value, before[name]) for name, value in loop.parameters.items())
