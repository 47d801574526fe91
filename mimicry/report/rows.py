"""The adapters of a study as rows: one for each artist, condition and series, trained or not."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mimicry.common.claims import claimed_by
from mimicry.report.images import ConditionImages
from mimicry.study import AdapterId, Artist, Condition, ImageFolder, State, StudyTree
from mimicry.tuning.adapters import AdapterFolder, AdapterFormat, AdapterSpec, TrainingRun, judge_adapter
from mimicry.tuning.adapters.recipe import complete_options

BASELINE = Condition()
IN_SAMPLE = "in-sample"
_THREADS = 8


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


@dataclass(frozen=True, kw_only=True)
class AdapterRow:
    """One adapter, there or not. What no record tells is None.

    `psnr` is in dB and `linf` of 255, both medians over the images, and None for original art.
    """

    adapter: AdapterId
    state: State
    reason: str = ""
    run: TrainingRun

    @property
    def is_there(self) -> bool:
        """Whether there are weights to speak of: complete, or of other images than are there now."""
        return self.state in (State.COMPLETE, State.STALE)

    @property
    def state_word(self) -> str:
        """The state as the page calls it."""
        return "not trained" if self.state is State.PENDING else self.state.value

    @cached_property
    def eval_loss(self) -> EvalLoss | None:
        return EvalLoss.of(self.run) if self.is_there else None

    @property
    def recipe_hash(self) -> str | None:
        return self._text("recipe_hash") if self.is_there else None

    @property
    def seed(self) -> int | None:
        return self._whole((self.run.options or {}).get("seed")) if self.is_there else None

    @property
    def seconds(self) -> float | None:
        return self.number("seconds")

    @property
    def device(self) -> str | None:
        device = (self.run.numerics or {}).get("device")
        return device if isinstance(device, str) else None

    @property
    def weights_sha256(self) -> str | None:
        return self.run.weights_sha256 if self.is_there else None

    @property
    def psnr(self) -> float | None:
        return self._median("psnr")

    @property
    def linf(self) -> float | None:
        return self._median("linf")

    @cached_property
    def recipe(self) -> Mapping[str, Any] | None:
        """What defines the adapter beside its images and its seed; None where it is not known."""
        options = complete_options(self.run.recipe or {}) if self.is_there else None
        if options is None:
            return None
        without_seed = {name: value for name, value in options.items() if name != "seed"}
        class_images = (self.run.class_images or {}).get("listing_sha256")
        return {**(self.run.recipe or {}), "options": without_seed, "class_images": class_images}

    def number(self, key: str) -> float | None:
        """Return a number of the record; None where it is not one, or there is no adapter."""
        value = self.run.content.get(key) if self.is_there else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def _median(self, key: str) -> float | None:
        values = [image.get(key) for image in self.run.images or [] if isinstance(image, dict)]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return statistics.median(numbers) if numbers and self.is_there else None

    def _text(self, key: str) -> str | None:
        value = self.run.content.get(key)
        return value if isinstance(value, str) else None

    @staticmethod
    def _whole(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_rows(
    tree: StudyTree,
    series: Sequence[str],
    conditions: Iterable[Condition],
    artists: Iterable[Artist],
    form: AdapterFormat,
) -> list[AdapterRow]:
    """Return a row for every series, artist and condition, in this order.

    Only headers of weights and sizes of images are read: `mimicry verify` is what reads all values.

    Args:
        series: folders of adapters, STACK or STACK@VARIANT.
        form: the format of the stack's adapters.
    """
    conditions, artists = list(conditions), list(artists)
    reader = _Reader(tree, form)
    wanted = [
        AdapterId.in_series(name, condition, artist)
        for name in series
        for artist in artists
        for condition in conditions
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(reader.row, wanted))


class _Reader:
    """Reads rows; what several rows need is looked up once."""

    def __init__(self, tree: StudyTree, form: AdapterFormat) -> None:
        self._tree, self._form = tree, form
        self._images = ConditionImages(tree)

    def row(self, adapter: AdapterId) -> AdapterRow:
        folder = AdapterFolder(self._tree.adapter_dir(adapter), self._form)
        run = folder.readable_run
        pairing = self._images.pairing(adapter.condition, adapter.artist, run.hold_out)
        images = ImageFolder(self._tree.data_root, ()) if pairing is None else pairing.images
        holder = claimed_by(folder.path)
        if holder:
            return AdapterRow(adapter=adapter, state=State.CLAIMED, reason=holder, run=run)
        judged = judge_adapter(folder, AdapterSpec(), images, full=False)
        row = AdapterRow(adapter=adapter, state=judged.state, reason=judged.reason, run=run)
        # Where the images are elsewhere, nothing can be said of them: the adapter is taken as it is.
        if judged.state is State.STALE and not images.names:
            return replace(row, state=State.COMPLETE, reason="")
        return self._without_weights(row, folder, images) if judged.state is State.PENDING else row

    def _without_weights(self, row: AdapterRow, folder: AdapterFolder, images: ImageFolder) -> AdapterRow:
        """Return the row of an adapter that is not there, with the reason if there is one."""
        status = row.run.status
        if status in (State.FAILED, State.INTERRUPTED, State.BLOCKED):
            return replace(row, state=State(status), reason=row.run.error or "")
        if folder.checkpoint_names() or status == State.RUNNING:
            return replace(row, state=State.INTERRUPTED, reason="apply_tuning takes it up")
        return row if images.names else replace(row, state=State.NO_DATA, reason="there are no images")
