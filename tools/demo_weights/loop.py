"""A resumable training loop for small models on slow machines, limited by time as well as by steps."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mimicry.common.files import atomic_path

# Returns the loss of batch number n, counted from 0, and other figures to print.
LossOf = Callable[[int], tuple[Tensor, dict[str, float]]]

SAVE_SECONDS = 60.0
_PRINT_SECONDS = 10.0
_WARM_UP_STEPS = 50
_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The end of a training: after `steps` or `minutes`, whichever comes first."""

    steps: int
    minutes: float

    def spent(self, steps: int, seconds: float) -> float:
        """Return the fraction that is used up; 1 or more ends the training."""
        return max(steps / self.steps, seconds / (60 * self.minutes))


class Training:
    """Trains `model` with AdamW; the result is the moving average of its weights.

    The learning rate rises over the first steps and falls linearly to zero as the budget of steps or time is
    spent, so that a machine that is too slow for all steps still ends with a low learning rate.

    A step averages the gradients of `workers` threads, each with its own batch. On a busy CPU that is much
    faster than one batch with each operation split between threads.
    """

    def __init__(
        self, name: str, model: nn.Module, *, learning_rate: float, decay: float, workers: int, folder: Path
    ) -> None:
        self.name, self.model, self.learning_rate, self.decay = name, model, learning_rate, decay
        self.workers = workers
        self.weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3
        )
        self.steps, self.seconds = 0, 0.0
        self.recent: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(workers)
        self._state = folder / f"{name}_state.pt"

    def run(self, loss_of: LossOf, budget: Budget) -> None:
        """Train until the budget is spent, from the saved state if there is one, and apply the average."""
        if self._state.exists():
            self._load()
            print(f"{self.name}: resumed at step {self.steps}, after {self.seconds:.0f} s", flush=True)
        started, before = time.monotonic(), self.seconds
        printed = saved = self.seconds
        while (spent := budget.spent(self.steps, self.seconds)) < 1:
            self.step(loss_of, spent)
            self.seconds = before + time.monotonic() - started
            if self.seconds - printed > _PRINT_SECONDS:
                self._print()
                printed = self.seconds
            if self.seconds - saved > SAVE_SECONDS:
                self._save()
                saved = self.seconds
        self._print()
        self._save()
        with torch.no_grad():
            for weight, average in zip(self.weights, self.average, strict=True):
                weight.copy_(average)

    def summary(self) -> dict[str, float]:
        """Return steps, seconds and the last figures, each a moving average over about fifty steps."""
        figures = {name: round(value, 4) for name, value in self.recent.items()}
        return {"steps": self.steps, "seconds": round(self.seconds), **figures}

    def step(self, loss_of: LossOf, spent: float) -> None:
        """Do one optimizer step, when the fraction `spent` of the budget is used up."""
        rate = self.learning_rate * min(1.0, (self.steps + 1) / _WARM_UP_STEPS) * (1 - spent)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = range(self.steps * self.workers, (self.steps + 1) * self.workers)
        slopes, figures = zip(
            *self._pool.map(lambda batch: self._slopes(loss_of, batch), batches), strict=True
        )
        for weight, *parts in zip(self.weights, *slopes, strict=True):
            weight.grad = torch.stack(parts).mean(dim=0) if len(parts) > 1 else parts[0]
        nn.utils.clip_grad_norm_(self.weights, _MAX_GRAD_NORM)
        self.optimizer.step()
        for noted in figures:
            self._remember(noted)
        self.steps += 1
        # A lower decay at first forgets the untrained weights sooner.
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)

    def _slopes(self, loss_of: LossOf, batch: int) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        loss, figures = loss_of(batch)
        slopes = torch.autograd.grad(loss, self.weights, allow_unused=True, materialize_grads=True)
        return slopes, {"loss": float(loss.detach()), **figures}

    def _remember(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.recent[name] = 0.98 * self.recent.get(name, value) + 0.02 * value

    def _print(self) -> None:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in self.recent.items())
        rate = self.optimizer.param_groups[0]["lr"]
        print(f"{self.name}: step {self.steps}  {self.seconds:.0f} s  {figures}  lr {rate:.1e}", flush=True)

    def _save(self) -> None:
        state = {
            "steps": self.steps, "seconds": self.seconds, "recent": self.recent, "average": self.average,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        with atomic_path(self._state) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state = torch.load(self._state, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = [
            tensor.to(weight.device) for tensor, weight in zip(state["average"], self.weights, strict=True)
        ]
        self.steps, self.seconds, self.recent = state["steps"], state["seconds"], state["recent"]
