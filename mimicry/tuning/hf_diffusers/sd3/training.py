"""The training loop: samples to batches, batches to losses, losses to optimizer steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor

from mimicry.common.children import Interrupted, stop_signals_held
from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3 import draws
from mimicry.tuning.hf_diffusers.sd3.checkpoints import Checkpoint, Stateful
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

    def run(self, checkpoint_asked: Callable[[], bool] = bool) -> None:
        """Take all optimizer steps that are left, and write the checkpoints that are due.

        Args:
            checkpoint_asked: says after each step whether somebody wants a checkpoint now.

        Raises:
            TrainingFailed: the loss or the gradient is no finite number.
        """
        config = self.setup.job.config
        self.transformer.train()
        for step in range(self._record.steps + 1, config.max_train_steps + 1):
            loss, _ = self.take_step(step)
            # The last one would be removed at once.
            due = step % config.checkpointing_steps == 0 and step < config.max_train_steps
            if checkpoint_asked() or due:
                self.save_checkpoint()
            if step % max(1, config.max_train_steps // _REPORTS) == 0:
                say(f"step {step}/{config.max_train_steps}, loss {loss:.4f}")

    def take_step(self, step: int) -> tuple[float, float]:
        """Take optimizer step number `step`, counted from 1; return mean loss and norm of the gradient.

        A stop signal finds the step either not taken or taken and recorded.
        """
        config, accelerator = self.setup.job.config, self.setup.accelerator
        begin = time.monotonic()
        losses = []
        for micro_step in range(config.gradient_accumulation_steps):
            first = ((step - 1) * config.gradient_accumulation_steps + micro_step) * config.train_batch_size
            loss = self.batch_loss(self.make_batch(first))
            accelerator.backward(loss / config.gradient_accumulation_steps)
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(list(self.parameters.values()), config.max_grad_norm)
        # One transfer from the device for the whole step.
        loss_value, norm_value = torch.stack([torch.stack(losses).mean(), grad_norm]).tolist()
        self._refuse_divergence(step, loss_value, norm_value)
        with stop_signals_held():
            self.optimizer.step()
            self.optimizer.zero_grad()
            seconds = time.monotonic() - begin
            self._record.add_step(step, loss_value, config.learning_rate, norm_value, seconds)
        return loss_value, norm_value

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the state that `checkpoint` holds."""
        checkpoint.restore(self.parameters, self._parts())

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the state after the last whole optimizer step, whatever signals come."""
        with stop_signals_held():
            self._record.save_checkpoint(self.parameters, self._parts())

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Run the body; when a stop signal ends it, the steps taken so far are not lost."""
        try:
            yield
        except Interrupted:
            if not self._record.complete:
                self.save_checkpoint()
            raise

    def _parts(self) -> dict[str, Stateful]:
        """Return, by name, everything beside the parameters that a step changes."""
        parts: dict[str, Stateful] = {"optimizer": self.optimizer}
        scaler = self.setup.accelerator.scaler
        return parts if scaler is None else parts | {"scaler": scaler}

    def _refuse_divergence(self, step: int, loss: float, grad_norm: float) -> None:
        name, value = ("gradient", grad_norm) if math.isfinite(loss) else ("loss", loss)
        if math.isfinite(value) or (name == "gradient" and self._finds_scale()):
            return
        raise TrainingFailed(
            f"the {name} of step {step} is {value}: training diverged; type a smaller --learning-rate"
        )

    def _finds_scale(self) -> bool:
        """Return whether an overflow is a matter of course: fp16's scaler leaves such a step out."""
        scaler = self.setup.accelerator.scaler
        # It halves its scale then; below 1 there is nothing left to find.
        return scaler is not None and scaler.get_scale() >= 1

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

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar in fp32."""
        config = self.setup.job.config
        noisy_BCHW = add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.sigmas_B)
        with self.setup.accelerator.autocast():
            prediction_BCHW = self.transformer(
                hidden_states=noisy_BCHW.to(self.setup.dtype),
                encoder_hidden_states=self._sequence_BLD,
                pooled_projections=self._pooled_BP,
                timestep=batch.timesteps_B,
                return_dict=False,
            )[0]
        return flow_loss(
            prediction_BCHW,
            batch.latents_BCHW,
            batch.noise_BCHW,
            batch.sigmas_B,
            scheme=config.weighting_scheme,
            precondition_outputs=bool(config.precondition_outputs),
        )
