"""The training loop: batches to losses, losses to optimizer steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext

import torch
from torch import Tensor

from mimicry.common.errors import TrainingFailed
from mimicry.common.processes import Interrupted, stop_signals_held
from mimicry.tuning.hf_diffusers.sd3.adapted_transformer import AdaptedTransformer
from mimicry.tuning.hf_diffusers.sd3.batches import BatchSource
from mimicry.tuning.hf_diffusers.training import rng
from mimicry.tuning.hf_diffusers.training.checkpoints import Checkpoint, Stateful
from mimicry.tuning.hf_diffusers.training.device import Prefetch, worker_count
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.optimizers import make_optimizer, make_scheduler, optimizer_warnings
from mimicry.tuning.hf_diffusers.training.records import RunRecord
from mimicry.tuning.hf_diffusers.training.resume import save_checkpoint

# Lines of progress in a whole run, for the log.
_REPORTS = 20


class Trainer:
    """One adapter in training: the model, its optimizer, and its batches."""

    def __init__(self, model: AdaptedTransformer, batches: BatchSource, record: RunRecord) -> None:
        self.model = model
        self.batches = batches
        self.record = record
        self.config, self.runtime, self.schedule = model.runtime.config, model.runtime, batches.schedule
        optimizer = make_optimizer(self.config, model.parameters.values(), self.runtime.device)
        # Not prepared by accelerate, which would count a step once for each process.
        self.scheduler = make_scheduler(self.config, optimizer, self.schedule.step_count)
        self.optimizer = self.runtime.accelerator.prepare(optimizer)
        self._coming = Prefetch(
            lambda number: batches.make(self.schedule.first_sample(number)),
            self.schedule.batch_count,
            worker_count(self.config, self.runtime.device),
            waiting=lambda: record.stage("wait_for_batches"),
        )

    def run(
        self,
        checkpoint_asked: Callable[[], bool] = bool,
        after_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Take all optimizer steps that are left, and write the checkpoints that are due.

        Args:
            checkpoint_asked: returns after each step whether a checkpoint was asked for.
            after_step: called with the number of each step, after its checkpoint.

        Raises:
            TrainingFailed: the loss or the gradient is not a finite number.
        """
        step_count = self.schedule.step_count
        for warning in optimizer_warnings(self.config):
            self.record.warn(warning)
        say(f"training {step_count - self.record.steps} steps on {self.runtime.device}")
        self.model.transformer.train()
        with closing(self._coming):
            first = self.record.steps + 1
            for step in range(first, step_count + 1):
                # Blocks are compiled and kernels chosen in it.
                with self.record.stage("first_step") if step == first else nullcontext():
                    loss, _ = self.take_step(step)
                # The last one would be removed at once.
                due = step % self.config.checkpointing_steps == 0 and step < step_count
                if checkpoint_asked() or due:
                    self.save_checkpoint()
                after_step(step)
                if step % max(1, step_count // _REPORTS) == 0:
                    say(f"step {step}/{step_count}, loss {loss:.4f}")

    def take_step(self, step: int) -> tuple[float, float]:
        """Take optimizer step number `step`, counted from 1; return mean loss and norm of the gradient.

        A stop signal ends the run either before the step or after it is recorded, in all processes alike.
        """
        config, accelerator = self.config, self.runtime.accelerator
        begin = time.monotonic()
        learning_rate = float(self.scheduler.get_last_lr()[0])
        loss = self._accumulate(step)
        grad_norm = accelerator.clip_grad_norm_(list(self.model.parameters.values()), config.max_grad_norm)
        # One transfer from the device for the whole step.
        loss_value, norm_value = torch.stack([loss, grad_norm]).tolist()
        self.refuse_divergence(step, loss_value, norm_value)
        with stop_signals_held():
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            seconds = time.monotonic() - begin
            self.record.add_step(step, loss_value, learning_rate, norm_value, seconds)
        return loss_value, norm_value

    def _accumulate(self, step: int) -> Tensor:
        """Leave the gradient of a step, over all processes, in the parameters; return its mean loss."""
        processes = self.runtime.processes
        while (found := self._micro_steps(step)) is None:
            # Begin again: gradients are the same to the last bit, whichever blocks are checkpointed.
            self.optimizer.zero_grad()
            self.runtime.free_memory()
            blocks = self.model.checkpointed
            self.record.warn(f"out of GPU memory: {blocks} blocks are checkpointed from now on")
            self.record.numerics.memory.checkpointed_blocks = blocks
        losses, drawn = found
        # Before gradients are summed, so that no process waits in a kernel for a dead one.
        met = processes.barrier_gather(drawn)
        for sample, level in sorted((draw for part in met for draw in part), key=lambda draw: draw[0].index):
            self.record.history.add_draw(sample, level)
        mean_loss = torch.stack(losses).mean() / processes.count
        gradients = (value.grad for value in self.model.parameters.values())
        processes.all_reduce_sum([mean_loss, *(gradient for gradient in gradients if gradient is not None)])
        return mean_loss

    def _micro_steps(self, step: int) -> tuple[list[Tensor], list[tuple[rng.Sample, int]]] | None:
        """Add up the gradients of this process's batches of a step; return their losses, and what was drawn.

        None where memory was too short and less can be kept of each pass; gradients are of no use then.
        """
        processes, count = self.runtime.processes, self.config.gradient_accumulation_steps
        losses: list[Tensor] = []
        drawn: list[tuple[rng.Sample, int]] = []
        try:
            for micro_step in range(count):
                if processes.stop_asked:
                    break
                batch = self._coming.get((step - 1) * count + micro_step)
                drawn += zip(batch.samples, batch.timestep_indices, strict=True)
                loss = self.model.loss(batch)
                self.runtime.accelerator.backward(loss / (count * processes.count))
                losses.append(loss.detach())
        except torch.OutOfMemoryError:
            if not self.model.checkpoint_more():
                raise
            # The error would hold on to what is to be freed, so that happens after it is gone.
            return None
        return losses, drawn

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the state that `checkpoint` holds."""
        checkpoint.restore(self.model.parameters, self._parts())

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the state after the last whole optimizer step; signals wait meanwhile."""
        with stop_signals_held():
            save_checkpoint(self.record, self.model.parameters, self._parts())

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Run the body; when a stop signal ends it, the steps taken so far are not lost."""
        try:
            yield
        except Interrupted:
            if self.record.adapter is None:
                self.save_checkpoint()
            raise

    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        scaler = self.runtime.accelerator.scaler
        return parts if scaler is None else parts | {"scaler": scaler}

    def refuse_divergence(self, step: int, loss: float, grad_norm: float) -> None:
        """Raise TrainingFailed for a loss or gradient that is not a finite number."""
        name, value = ("gradient", grad_norm) if math.isfinite(loss) else ("loss", loss)
        scaler = self.runtime.accelerator.scaler
        # fp16's scaler skips a step that overflows, and halves its scale; below 1 there is nothing to find.
        expected = name == "gradient" and scaler is not None and scaler.get_scale() >= 1
        if math.isfinite(value) or expected:
            return
        raise self.runtime.processes.common_error(
            TrainingFailed(
                f"the {name} of step {step} is {value}: training diverged; type a smaller --learning-rate"
            )
        )
