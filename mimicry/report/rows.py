"""The adapters of a study as rows: one for each artist, condition and series, trained or not."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mimicry.study import Condition
from mimicry.tuning.adapters import AdapterStatus, TrainingRun, complete_options
from mimicry.tuning.status.study_status import StudyStatus

BASELINE = Condition()


@dataclass(frozen=True, kw_only=True)
class EvalLoss:
    """The evaluation loss of one adapter, a mean squared error without a unit, lower where the originals are
    predicted better.

    `start` is the base model's and `end` the adapter's. `on` says whether the paintings were trained on.
    """

    start: float
    end: float
    on: str
    images: int
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, run: TrainingRun) -> "EvalLoss | None":
        """Return what a record says; None where there was no evaluation, or it is not whole."""
        facts = run.content.get("eval_loss")
        if not isinstance(facts, dict):
            return None
        try:
            return cls(
                start=float(facts["start"]),
                end=float(facts["end"]),
                on=str(facts["on"]),
                images=int(facts["images"]),
                timesteps=tuple(map(float, facts["timesteps"])),
            )
        except (KeyError, TypeError, ValueError):
            return None


class AdapterRow(AdapterStatus):
    """One adapter of a report, there or not. What no record tells is None.

    `psnr` is in dB and `linf` of 255, both medians over the images, and None for original art.
    """

    @property
    def recipe_hash(self) -> str | None:
        return super().recipe_hash if self.has_adapter else None

    @property
    def seed(self) -> int | None:
        return super().seed if self.has_adapter else None

    @property
    def seconds(self) -> float | None:
        return super().seconds if self.has_adapter else None

    @cached_property
    def eval_loss(self) -> EvalLoss | None:
        return EvalLoss.of(self.run) if self.has_adapter else None

    @property
    def device(self) -> str | None:
        return self.run.device

    @property
    def weights_sha256(self) -> str | None:
        return self.run.weights_sha256 if self.has_adapter else None

    @property
    def psnr(self) -> float | None:
        return self._median("psnr")

    @property
    def linf(self) -> float | None:
        return self._median("linf")

    @cached_property
    def recipe(self) -> Mapping[str, Any] | None:
        """What defines the adapter beside its images and its seed; None where it is not known."""
        options = complete_options(self.run.recipe or {}) if self.has_adapter else None
        if options is None:
            return None
        without_seed = {name: value for name, value in options.items() if name != "seed"}
        listing = self.run.class_image_listing
        return {**(self.run.recipe or {}), "options": without_seed, "class_images": listing}

    def number(self, key: str) -> float | None:
        """Return a number of the record; None where it is not one, or there is no adapter."""
        value = self.run.content.get(key) if self.has_adapter else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def _median(self, key: str) -> float | None:
        values = [image.get(key) for image in self.run.images or [] if isinstance(image, dict)]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return statistics.median(numbers) if numbers and self.has_adapter else None


def rows_of(status: StudyStatus) -> list[AdapterRow]:
    """Return a row for every cell of a study, in its order.

    Conditions that nothing has images of, and series in which nothing was trained, are left out.
    """
    trained = {cell.adapter.series for cell in status.cells if cell.weights is not None}
    return [
        AdapterRow(**vars(cell))
        for cell in status.cells
        if cell.adapter.condition not in status.matrix.absent
        and cell.adapter.series in {status.matrix.series[0], *trained}
    ]
