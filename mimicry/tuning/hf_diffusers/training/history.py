"""What a run has seen so far: losses, spikes, and a hash of the samples that were drawn."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mimicry.common.files import canonical_json, sha256_text
from mimicry.tuning.hf_diffusers.training.distributed import say
from mimicry.tuning.hf_diffusers.training.rng import Sample

# A loss is a spike when it is this many times the median of the losses before it, of which at most WINDOW
# and at least MINIMUM count: single losses differ by a factor of two or three with the timesteps drawn.
SPIKE_FACTOR = 5.0
SPIKE_WINDOW = 50
SPIKE_MINIMUM = 10


@dataclass
class History:
    """The losses of a run, with its evaluation losses by step, and the hash of all draws.

    The hash is a chain: a run that is resumed continues it. It is equal for equal sequences of samples.
    """

    samples_per_step: int
    losses: list[float] = field(default_factory=list)
    eval_losses: dict[int, float] = field(default_factory=dict)
    loss_spikes: list[dict[str, float]] = field(default_factory=list)
    draws_hash: str = ""
    _new_draws: list[list[Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """The optimizer steps that were taken so far, those before a resumption included."""
        return len(self.losses)

    def restore(self, metrics: bytes, facts: Mapping[str, Any]) -> None:
        """Become what it was when a checkpoint with these metrics and facts was written."""
        lines = [json.loads(line) for line in metrics.splitlines()]
        self.losses = [line["loss"] for line in lines if "loss" in line]
        self.eval_losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
        self.loss_spikes = list(facts["loss_spikes"])
        self.draws_hash = facts["draws"]

    def add_loss(self, step: int, loss: float) -> None:
        """Note the loss of a step that was taken; say it when it is far above those just before it."""
        before = self.losses[-SPIKE_WINDOW:]
        if len(before) >= SPIKE_MINIMUM and loss > SPIKE_FACTOR * median(before):
            self.loss_spikes.append({"step": step, "loss": loss})
            say(f"loss spike at step {step}: {loss:.4f}, where the median was {median(before):.4f}")
        self.losses.append(loss)
        end = self.steps * self.samples_per_step
        taken = [facts for facts in self._new_draws if facts[0] < end]
        self._new_draws = [facts for facts in self._new_draws if facts[0] >= end]
        self.draws_hash = sha256_text(self.draws_hash + canonical_json(taken))

    def add_draw(self, sample: Sample, timestep_index: int) -> None:
        """Note a sample; it goes into the hash once its optimizer step was taken."""
        crop = sample.crop
        kind = [sample.kind] if sample.kind else []
        self._new_draws.append(
            [sample.index, sample.stem, crop.across, crop.down, crop.flipped, timestep_index, *kind]
        )
