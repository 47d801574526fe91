"""The training loop: samples to batches, batches to losses, losses to optimizer steps."""

import math
import time
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3 import draws
from mimicry.tuning.hf_diffusers.sd3.flow_matching import (
    SigmaTable,
    add_noise,
    draw_timestep_index,
    flow_loss,
)
from mimicry.tuning.hf_diffusers.sd3.job import Setup
from mimicry.tuning.hf_diffusers.sd3.latents import LatentSource
from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord, say

# Lines of progress in a whole run, for the log.
_REPORTS = 20


@dataclass(frozen=True)
class Batch:
    """The samples of one forward pass, all in fp32 on the device.

    `latents_BCHW` and `noise_BCHW` are the ends of the path, `sigmas_B` the places on it and `timesteps_B`
    what the transformer is told of them.
    """

    latents_BCHW: Tensor
    noise_BCHW: Tensor
    sigmas_B: Tensor
    timesteps_B: Tensor


def load_transformer(setup: Setup) -> SD3Transformer2DModel:
    """Read the transformer straight in the training precision and move it to the device."""
    transformer = SD3Transformer2DModel.from_pretrained(
        setup.model.folder / "transformer",
        variant=setup.job.config.variant,
        torch_dtype=setup.dtype,
        low_cpu_mem_usage=True,
    ).to(setup.device)
    if setup.job.config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def load_sigmas(setup: Setup) -> SigmaTable:
    """Read the noise levels of the model's scheduler, without the final zero."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(setup.model.folder / "scheduler")
    timesteps = scheduler.timesteps.float()
    return SigmaTable(timesteps=timesteps, sigmas=scheduler.sigmas[: len(timesteps)].float())


class Loop:
    """One adapter in training: the transformer with its LoRA, its optimizer, and where samples come from."""

    def __init__(
        self,
        setup: Setup,
        transformer: SD3Transformer2DModel,
        prompt: PromptEmbeds,
        latents: LatentSource,
        record: RunRecord,
    ) -> None:
        config = setup.job.config
        self.setup = setup
        self.transformer = transformer
        self.parameters = add_adapter(transformer, config)
        self._latents = latents
        self._record = record
        self._sigmas = load_sigmas(setup)
        count = config.train_batch_size
        prompt = prompt.to(setup.device, setup.dtype)
        self._sequence_BLD = prompt.sequence_1LD.expand(count, -1, -1)
        self._pooled_BP = prompt.pooled_1P.expand(count, -1)
        self.optimizer = setup.accelerator.prepare(
            torch.optim.AdamW(
                self.parameters.values(),
                lr=config.learning_rate,
                betas=(config.adam_beta1, config.adam_beta2),
                weight_decay=config.adam_weight_decay,
                eps=config.adam_epsilon,
            )
        )

    def run(self) -> None:
        """Take all optimizer steps.

        Raises:
            TrainingFailed: the loss is no finite number.
        """
        config = self.setup.job.config
        self.transformer.train()
        for step in range(1, config.max_train_steps + 1):
            begin = time.monotonic()
            loss, grad_norm = self.take_step(step)
            self._record.add_step(step, loss, config.learning_rate, grad_norm, time.monotonic() - begin)
            if step % max(1, config.max_train_steps // _REPORTS) == 0:
                say(f"step {step}/{config.max_train_steps}, loss {loss:.4f}")

    def take_step(self, step: int) -> tuple[float, float]:
        """Take optimizer step number `step`, counted from 1; return mean loss and norm of the gradient."""
        config, accelerator = self.setup.job.config, self.setup.accelerator
        losses = []
        for micro_step in range(config.gradient_accumulation_steps):
            first = ((step - 1) * config.gradient_accumulation_steps + micro_step) * config.train_batch_size
            loss = self.batch_loss(self.make_batch(first))
            accelerator.backward(loss / config.gradient_accumulation_steps)
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(list(self.parameters.values()), config.max_grad_norm)
        # One transfer from the device for the whole step.
        loss_value, norm_value = torch.stack([torch.stack(losses).mean(), grad_norm]).tolist()
        if not math.isfinite(loss_value):
            raise TrainingFailed(
                f"the loss of step {step} is {loss_value}: training diverged; type a smaller --learning-rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss_value, norm_value

    def make_batch(self, first: int) -> Batch:
        """Draw the samples number `first` and following, as many as a batch has."""
        config, device = self.setup.job.config, self.setup.device
        latents, noise, levels = [], [], []
        for index in range(first, first + config.train_batch_size):
            sample = self.setup.samples.sample(index)
            latents_CHW = self._latents.latents(sample)
            shape = tuple(latents_CHW.shape)
            latents.append(latents_CHW)
            noise.append(torch.from_numpy(draws.normal(config.seed, "noise", index, sample.stem, shape)))
            levels.append(draw_timestep_index(config, sample, len(self._sigmas.timesteps)))
            self._record.add_draw(sample, levels[-1])
        return Batch(
            latents_BCHW=torch.stack(latents).to(device),
            noise_BCHW=torch.stack(noise).to(device),
            sigmas_B=self._sigmas.sigmas[levels].to(device),
            timesteps_B=self._sigmas.timesteps[levels].to(device),
        )

    def predict(self, batch: Batch) -> Tensor:
        """Return the velocity that the transformer predicts for each sample, of shape (B, C, H, W)."""
        noisy_BCHW = add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.sigmas_B)
        with self.setup.accelerator.autocast():
            prediction_BCHW: Tensor = self.transformer(
                hidden_states=noisy_BCHW.to(self.setup.dtype),
                encoder_hidden_states=self._sequence_BLD,
                pooled_projections=self._pooled_BP,
                timestep=batch.timesteps_B,
                return_dict=False,
            )[0]
        return prediction_BCHW

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar in fp32."""
        config = self.setup.job.config
        return flow_loss(
            self.predict(batch),
            batch.latents_BCHW,
            batch.noise_BCHW,
            batch.sigmas_B,
            scheme=config.weighting_scheme,
            precondition_outputs=bool(config.precondition_outputs),
        )
