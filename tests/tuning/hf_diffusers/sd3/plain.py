"""The training as it would stand in a text book: no peft, no accelerate, no formula of ours.

Gradients and steps of the real trainer are compared with it.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from mimicry.study.images import read_rgb
from mimicry.tuning.hf_diffusers.sd3.trainer import Trainer
from mimicry.tuning.hf_diffusers.training.flow_matching import draw_timestep_index
from mimicry.tuning.hf_diffusers.training.latents import apply_crop, to_pixels
from mimicry.tuning.hf_diffusers.training.rng import Sample, normal
from tests.tuning.hf_diffusers.sd3.parts import draw_lora_b, make_trainer
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
    """The same training: W + B A, one sample at a time.

    `captions` are the prompts of images by stem, of those that have one; `class_images` lie in a folder.
    """

    trainer: Trainer
    studio: Studio
    images: Path
    captions: dict[str, str] = field(default_factory=dict)
    class_images: Path | None = None
    lora: dict[str, Tensor] = field(init=False)
    first_moments: dict[str, Tensor] = field(init=False)
    second_moments: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        folder = self.studio.base_model
        self.config = self.trainer.config
        self.transformer: Any = SD3Transformer2DModel.from_pretrained(folder / "transformer").train()
        self.vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
        self.frozen = {name: value.detach() for name, value in self.transformer.named_parameters()}
        self.pipeline: Any = StableDiffusion3Pipeline.from_pretrained(folder)
        self.known_prompts: dict[str, tuple[Tensor, Tensor]] = {}
        self.lora = {
            name: value.detach().clone().requires_grad_()
            for name, value in self.trainer.model.parameters.items()
        }
        self.first_moments = {name: torch.zeros_like(value) for name, value in self.lora.items()}
        self.second_moments = {name: torch.zeros_like(value) for name, value in self.lora.items()}

    def gradients(self, step: int) -> tuple[float, dict[str, Tensor]]:
        """Return the loss of a step, and the gradient of its mean over all samples of the step."""
        count = self.config.train_batch_size * self.config.gradient_accumulation_steps
        indices = range((step - 1) * count, step * count)
        samples = self.trainer.schedule.plans[0]
        stem_of = {path.stem: path for path in self.images.iterdir()}
        losses = [self.sample_loss(samples.sample(index), stem_of, "") for index in indices]
        loss = torch.stack(losses).mean()
        if self.class_images is not None:
            # L = L_instance + weight * L_class, each a mean (Ruiz et al. 2023, eq. 2).
            of_class = {path.stem: path for path in self.class_images.iterdir()}
            order = self.trainer.schedule.plans[1]
            others = [self.sample_loss(order.sample(index), of_class, "class_") for index in indices]
            loss = loss + self.config.prior_loss_weight * torch.stack(others).mean()
        gradients = torch.autograd.grad(loss, list(self.lora.values()))
        return float(loss.detach()), dict(zip(self.lora, gradients, strict=True))

    def sample_loss(self, sample: Sample, paths: dict[str, Path], kind: str) -> Tensor:
        """Return the loss of one sample; image and level are those that the plan has for it."""
        config = self.config
        index = sample.index
        prompt, pooled = self.embeds(self.prompt_of(sample.stem, kind))
        with torch.no_grad():
            posterior = self.vae.encode(
                to_pixels(apply_crop(read_rgb(paths[sample.stem]), sample.crop, config.resolution))
            ).latent_dist
        drawn = posterior.mean + posterior.std * self.draw(f"{kind}vae", index, sample.stem, posterior.mean)
        clean = (drawn - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        noise = self.draw(f"{kind}noise", index, sample.stem, clean)
        sigma = plain_sigma(draw_timestep_index(config, sample, 1000))
        noisy = (1 - sigma) * clean + sigma * noise
        velocity = torch.func.functional_call(
            self.transformer,
            self.adapted_weights(),
            kwargs={
                "hidden_states": noisy,
                "encoder_hidden_states": prompt,
                "pooled_projections": pooled,
                "timestep": torch.tensor([1000 * sigma]),
                "return_dict": False,
            },
        )[0]
        error = velocity - (noise - clean)
        if config.precondition_outputs:
            error = (velocity * -sigma + noisy) - clean
        loss: Tensor = plain_weight(config.weighting_scheme, sigma) * (error**2).mean()
        return loss

    def prompt_of(self, stem: str, kind: str) -> str:
        if kind:
            return str(self.config.class_prompt)
        return self.captions.get(stem, self.config.instance_prompt)

    def embeds(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Return sequence and pooled prompt, as diffusers' pipeline has them."""
        if prompt not in self.known_prompts:
            with torch.no_grad():
                sequence, _, pooled, _ = self.pipeline.encode_prompt(
                    prompt,
                    prompt_2=None,
                    prompt_3=None,
                    do_classifier_free_guidance=False,
                    max_sequence_length=self.config.max_sequence_length,
                )
            self.known_prompts[prompt] = (sequence, pooled)
        return self.known_prompts[prompt]

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


def trainer_and_plain(
    studio: Studio,
    folder: Path,
    *flags: str,
    images: Path | None = None,
    captions: dict[str, str] | None = None,
    class_images: Path | None = None,
) -> tuple[Trainer, PlainTraining]:
    trainer = make_trainer(studio, folder, "--center_crop", *flags, images=images)
    draw_lora_b(trainer.model.parameters)
    trainer.model.transformer.train()
    plain = PlainTraining(trainer, studio, images or studio.images, captions or {}, class_images)
    return trainer, plain


def assert_close(ours: dict[str, Any], plain: dict[str, Tensor]) -> None:
    assert set(ours) == set(plain)
    for name, expected in plain.items():
        value = expected.detach()
        scale = float(value.abs().max())
        torch.testing.assert_close(ours[name], value, atol=1e-4 * scale, rtol=1e-3, msg=name)


def assert_trains_alike(trainer: Trainer, plain: PlainTraining) -> None:
    """Compare the gradients of the first step, then loss, norm and parameters of two steps."""
    config = plain.config
    size, count = config.train_batch_size, config.gradient_accumulation_steps
    for first in range(0, size * count, size):
        torch.autograd.backward(trainer.model.loss(trainer.batches.make(first)) / count)
    gradients = {name: value.grad for name, value in trainer.model.parameters.items()}
    assert_close(gradients, plain.gradients(1)[1])
    trainer.optimizer.zero_grad()

    for step in (1, 2):
        loss, norm = trainer.take_step(step)
        plain_loss, plain_norm = plain.take_step(step)
        assert loss == pytest.approx(plain_loss, rel=1e-4)
        assert norm == pytest.approx(plain_norm, rel=1e-3)
        assert norm > config.max_grad_norm  # so that clipping was at work
        assert_close(trainer.model.parameters, plain.lora)
