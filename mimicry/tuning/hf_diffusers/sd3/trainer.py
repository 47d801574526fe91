"""The training trainer: samples to batches, batches to losses, losses to optimizer steps."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mimicry.common.children import Interrupted, stop_signals_held
from mimicry.common.errors import TrainingFailed
from mimicry.tuning.hf_diffusers.sd3.batches import Batch, BatchMaker, Prompts, load_sigmas
from mimicry.tuning.hf_diffusers.sd3.lora import add_adapter
from mimicry.tuning.hf_diffusers.sd3.memory import checkpoint_blocks
from mimicry.tuning.hf_diffusers.sd3.modulation import ModulationKey
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.records import RunRecord, say
from mimicry.tuning.hf_diffusers.sd3.setup import Setup
from mimicry.tuning.hf_diffusers.sd3.transformer import make_table
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint, Stateful
from mimicry.tuning.hf_diffusers.training.flow_matching import add_noise, draw_timestep_index, flow_loss
from mimicry.tuning.hf_diffusers.training.kernels import compile_blocks
from mimicry.tuning.hf_diffusers.training.latents import LatentSource
from mimicry.tuning.hf_diffusers.training.optimizers import make_optimizer, make_scheduler, optimizer_warnings
from mimicry.tuning.hf_diffusers.training.prefetch import Prefetch

# Lines of progress in a whole run, for the log.
_REPORTS = 20


class Trainer:
    """One adapter in training: the transformer with its LoRA, its optimizer, and where samples come from."""

    def __init__(
        self,
        setup: Setup,
        transformer: SD3Transformer2DModel,
        prompts: Sequence[PromptEmbeds],
        latents: LatentSource,
        record: RunRecord,
        keys: Collection[ModulationKey] | None = None,
    ) -> None:
        """Put the adapter on, and compute the conditioning table where there is to be one.

        Args:
            prompts: those of `setup.prompts`, in their order, and after them any that others ask for.
            keys: all that is asked of the transformer; by default what training asks.
        """
        config = setup.job.config
        self.setup = setup
        self.transformer = transformer
        self.parameters = add_adapter(transformer, config)
        self._latents = latents
        self._record = record
        self.batches = BatchMaker(
            setup.device, load_sigmas(setup), Prompts(prompts, setup.device, setup.dtype)
        )
        self._table = make_table(
            setup,
            transformer,
            timesteps_T=self.batches.sigmas.timesteps,
            pooled_NP=self.batches.prompts.pooled_NP.to(setup.device),
            keys=keys,
        )
        self._fit_to_device(self.batches.prompts.token_count)
        for warning in optimizer_warnings(config):
            record.warn(warning)
        optimizer = make_optimizer(config, self.parameters.values(), setup.device)
        # Not prepared by accelerate, which would count a step once for each process.
        self.scheduler = make_scheduler(config, optimizer, setup.step_count)
        self.optimizer = setup.accelerator.prepare(optimizer)
        self._coming = Prefetch(
            lambda number: self.make_batch(setup.first_sample(number)),
            setup.step_count * config.gradient_accumulation_steps,
            config.dataloader_num_workers,
        )

    def _fit_to_device(self, sequence_length: int) -> None:
        checkpointed = checkpoint_blocks(self.setup, self.transformer, sequence_length)
        if self.setup.job.config.compile_blocks:
            compile_blocks(self.transformer)
        self._record.add_memory(conditioning_table=self._table is not None, checkpointed_blocks=checkpointed)
        if checkpointed:
            say(f"checkpointing {checkpointed} of {len(self.transformer.transformer_blocks)} blocks")

    def run(
        self,
        checkpoint_asked: Callable[[], bool] = bool,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Take all optimizer steps that are left, and write the checkpoints that are due.

        Args:
            checkpoint_asked: says after each step whether somebody wants a checkpoint now.
            after_step: called with the number of each step, once it was taken and its checkpoint written.

        Raises:
            TrainingFailed: the loss or the gradient is no finite number.
        """
        step_count = self.setup.step_count
        self.transformer.train()
        with closing(self._coming):
            for step in range(self._record.steps + 1, step_count + 1):
                loss, _ = self.take_step(step)
                # The last one would be removed at once.
                due = step % self.setup.job.config.checkpointing_steps == 0 and step < step_count
                if checkpoint_asked() or due:
                    self.save_checkpoint()
                after_step(step)
                if step % max(1, step_count // _REPORTS) == 0:
                    say(f"step {step}/{step_count}, loss {loss:.4f}")

    def take_step(self, step: int) -> tuple[float, float]:
        """Take optimizer step number `step`, counted from 1; return mean loss and norm of the gradient.

        A stop signal finds the step either not taken or taken and recorded, in all processes alike.
        """
        config, accelerator = self.setup.job.config, self.setup.accelerator
        begin = time.monotonic()
        learning_rate = float(self.scheduler.get_last_lr()[0])
        loss = self._accumulate(step)
        grad_norm = accelerator.clip_grad_norm_(list(self.parameters.values()), config.max_grad_norm)
        # One transfer from the device for the whole step.
        loss_value, norm_value = torch.stack([loss, grad_norm]).tolist()
        self._refuse_divergence(step, loss_value, norm_value)
        with stop_signals_held():
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            seconds = time.monotonic() - begin
            self._record.add_step(step, loss_value, learning_rate, norm_value, seconds)
        return loss_value, norm_value

    def _accumulate(self, step: int) -> Tensor:
        """Leave the gradient of optimizer step `step` with the parameters; return its mean loss, in fp32.

        Each process goes through its own batches; then loss and gradient are those of all of them.
        """
        processes, count = self.setup.processes, self.setup.job.config.gradient_accumulation_steps
        losses: list[Tensor] = []
        drawn: list[tuple[rng.Sample, int]] = []
        for micro_step in range(count):
            if processes.stop_asked:
                break
            batch = self._coming.get((step - 1) * count + micro_step)
            drawn += zip(batch.samples, batch.timestep_indices, strict=True)
            loss = self.batch_loss(batch)
            self.setup.accelerator.backward(loss / (count * processes.count))
            losses.append(loss.detach())
        # Before gradients are added up: nobody waits in a kernel for a process that is gone.
        met = processes.barrier_gather(drawn)
        for sample, level in sorted((draw for part in met for draw in part), key=lambda draw: draw[0].index):
            self._record.add_draw(sample, level)
        mean_loss = torch.stack(losses).mean() / processes.count
        gradients = (value.grad for value in self.parameters.values())
        processes.all_reduce_sum([mean_loss, *(gradient for gradient in gradients if gradient is not None)])
        return mean_loss

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
        parts: dict[str, Stateful] = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        scaler = self.setup.accelerator.scaler
        return parts if scaler is None else parts | {"scaler": scaler}

    def _refuse_divergence(self, step: int, loss: float, grad_norm: float) -> None:
        name, value = ("gradient", grad_norm) if math.isfinite(loss) else ("loss", loss)
        if math.isfinite(value) or (name == "gradient" and self._finds_scale()):
            return
        raise self.setup.processes.agreed(
            TrainingFailed(
                f"the {name} of step {step} is {value}: training diverged; type a smaller --learning-rate"
            )
        )

    def _finds_scale(self) -> bool:
        """Return whether an overflow is a matter of course: fp16's scaler leaves such a step out."""
        scaler = self.setup.accelerator.scaler
        # It halves its scale then; below 1 there is nothing left to find.
        return scaler is not None and scaler.get_scale() >= 1

    def make_batch(self, first: int) -> Batch:
        """Draw the samples of index `first` and following, as many as a batch has; on any thread.

        With prior preservation as many class samples come after them.
        """
        setup, config = self.setup, self.setup.job.config
        indices = range(first, first + config.train_batch_size)
        samples = tuple(plan.sample(index) for plan in setup.plans for index in indices)
        latents, noise = [], []
        for sample in samples:
            latents.append(self._latents.latents(sample))
            shape = tuple(latents[-1].shape)
            values = rng.normal(config.seed, sample.purpose("noise"), sample.index, sample.stem, shape)
            noise.append(torch.from_numpy(values))
        level_count = len(self.batches.sigmas.timesteps)
        return self.batches.make(
            latents,
            noise,
            timestep_indices=[draw_timestep_index(config, sample, level_count) for sample in samples],
            prompt_indices=[setup.prompts.index_of(sample) for sample in samples],
            samples=samples,
        )

    def _modulation(self, batch: Batch) -> Tensor:
        """Return what the transformer takes as pooled projections: rows of the table, or the prompts."""
        if self._table is None:
            return batch.pooled_BP
        return self._table.rows(batch.timestep_indices, batch.prompt_indices)

    def predict(self, batch: Batch) -> Tensor:
        """Return the velocity that the transformer predicts for each sample, of shape (B, C, H, W)."""
        noisy_BCHW = add_noise(batch.latents_BCHW, batch.noise_BCHW, batch.sigmas_B)
        with self.setup.accelerator.autocast():
            prediction_BCHW: Tensor = self.transformer(
                hidden_states=noisy_BCHW.to(self.setup.dtype),
                encoder_hidden_states=batch.sequence_BLD,
                pooled_projections=self._modulation(batch),
                timestep=batch.timesteps_B,
                return_dict=False,
            )[0]
        return prediction_BCHW

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar in fp32.

        It is the mean over the samples of the style; with prior preservation (Ruiz et al. 2023, DreamBooth,
        arXiv:2208.12242, section 3.3), plus prior_loss_weight times the mean over the class samples.
        """
        config = self.setup.job.config
        if config.lora_dropout:
            # What is dropped depends on the place in the run alone, and checkpointing keeps it: it stores
            # the generator's state.
            torch.manual_seed(rng.dropout_seed(config.seed, batch.samples[0].index))
        prediction_BCHW = self.predict(batch)
        if not config.with_prior_preservation:
            return self._mean_loss(prediction_BCHW, batch, slice(None))
        count = config.train_batch_size
        loss = self._mean_loss(prediction_BCHW, batch, slice(count))
        return loss + config.prior_loss_weight * self._mean_loss(prediction_BCHW, batch, slice(count, None))

    def _mean_loss(self, prediction_BCHW: Tensor, batch: Batch, rows: slice) -> Tensor:
        config = self.setup.job.config
        return flow_loss(
            prediction_BCHW[rows],
            batch.latents_BCHW[rows],
            batch.noise_BCHW[rows],
            batch.sigmas_B[rows],
            scheme=config.weighting_scheme,
            precondition_outputs=bool(config.precondition_outputs),
        )
