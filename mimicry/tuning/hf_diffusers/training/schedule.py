"""Which samples each forward pass of a run shows, and which passes each process computes."""

from collections.abc import Iterator
from dataclasses import dataclass

from mimicry.tuning.hf_diffusers.training.rng import Sample, SamplePlan
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True, kw_only=True)
class SampleSchedule:
    """The forward passes of one process of a run.

    `plans` are the orders of samples: of the images that the style is learned from, then of class images, if
    there are any.
    """

    config: TuningConfig
    plans: tuple[SamplePlan, ...]
    process_count: int = 1
    process_index: int = 0

    @property
    def step_count(self) -> int:
        """The optimizer steps of the whole run."""
        return self.config.step_count(len(self.plans[0].stems))

    @property
    def batch_count(self) -> int:
        """The forward passes of this process in the whole run."""
        return self.step_count * self.config.gradient_accumulation_steps

    @property
    def forward_batch_size(self) -> int:
        """The samples of one forward pass; with prior preservation half of them show class images."""
        return self.config.train_batch_size * len(self.plans)

    def first_sample(self, batch: int) -> int:
        """Return the index of the first sample of this process's batch of that number, counted from 0.

        The processes take turns, batch by batch: together they go through the samples as one would.
        """
        return (batch * self.process_count + self.process_index) * self.config.train_batch_size

    def batch_samples(self, first: int) -> tuple[Sample, ...]:
        """Return the samples of the batch that begins with index `first`; class samples come last."""
        indices = range(first, first + self.config.train_batch_size)
        return tuple(plan.sample(index) for plan in self.plans for index in indices)

    def own_indices(self) -> Iterator[int]:
        """Return the indices of the samples of the whole run that this process computes, in order."""
        for batch in range(self.batch_count):
            first = self.first_sample(batch)
            yield from range(first, first + self.config.train_batch_size)
