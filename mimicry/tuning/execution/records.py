"""The record of a training whose stack does not write one, as other people's scripts do not."""

import time
from dataclasses import dataclass, field
from typing import Any

from mimicry.common.errors import AdapterBroken, TrainingFailed
from mimicry.common.files import utc_now, write_json
from mimicry.study import Captions, ImageRecord, State
from mimicry.study.image_checks import refuse_changed_images
from mimicry.study.image_sets import described_images
from mimicry.tuning.planning import Target


@dataclass(frozen=True)
class UnrecordedTraining:
    """What is known of a training before it begins, in case the stack does not record it."""

    target: Target
    images: list[ImageRecord]
    captions: Captions | None
    started_at: str = field(default_factory=utc_now)
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, target: Target) -> "UnrecordedTraining":
        """Note the images and captions as they are now.

        Raises:
            OSError: one cannot be read.
        """
        return cls(target, target.images.records(), target.captions())

    def record_if_missing(self, steps: int) -> None:
        """Write the training_run.json of a whole adapter whose stack has left none.

        Raises:
            TrainingFailed: the images were changed meanwhile, or the adapter is not what was asked for; it
                was set aside.
        """
        target, folder = self.target, self.target.folder
        if folder.record.exists():
            return
        try:
            refuse_changed_images(target.images, self.images)
        except TrainingFailed:
            # Without a record it would count as complete.
            folder.set_aside(State.STALE)
            raise
        spec = target.request.spec
        try:
            adapter = folder.check(spec.rank)
        except AdapterBroken as error:
            folder.set_aside(State.BROKEN)
            raise TrainingFailed(str(error)) from error
        reading = target.request.config.reading
        described, marks = described_images(target.pairing, self.captions, reading)
        record: dict[str, Any] = {
            "schema": 1,
            "stack": target.request.stack.name,
            "recipe": spec.recipe,
            "recipe_hash": spec.recipe_hash,
            "images": described,
            "unpaired": marks,
            "warnings": [*target.warnings, *target.notes],
            "status": State.COMPLETE,
            "started_at": self.started_at,
            "finished_at": utc_now(),
            "seconds": round(time.monotonic() - self.started, 3),
            "steps": steps,
            "weights": adapter.record(),
        }
        write_json(folder.record, {key: value for key, value in record.items() if value is not None})
