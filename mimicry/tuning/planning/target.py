"""One adapter in a plan: what lies there, what the call does about it, and the command that trains it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from mimicry.common.files import FileIdentity
from mimicry.study import (
    AdapterId,
    Artist,
    Captions,
    Condition,
    Dose,
    EvaluatedOn,
    Examined,
    Finding,
    ImageFolder,
    Pairing,
    Selection,
    Size,
    Source,
    State,
    StudyTree,
    series_name,
)
from mimicry.tuning.adapters import (
    OWN_TRAINER,
    AdapterFolder,
    AdapterSpec,
    AdapterState,
    AdapterStatus,
    judge_adapter,
)
from mimicry.tuning.hub.upload import HubOptions, Upload
from mimicry.tuning.options.click_options import option_words
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TrainingInputs
from mimicry.tuning.stacks import Stack


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a call of apply_tuning asks for in every condition. `hub` is None where nothing is uploaded."""

    tree: StudyTree
    stack: Stack
    selection: Selection = field(default_factory=Selection)
    overwrite: bool = False
    retrain_stale: bool = False
    allow_mixed_recipes: bool = False
    min_samples_per_artist: int = 1
    allow_unpaired: bool = False
    hub: HubOptions | None = None
    train_script: Path | None = None
    stall_minutes: float = 30.0

    @property
    def uploads(self) -> bool:
        """Whether trainings end with an upload. Only through its options does a stack hear of the Hub."""
        return self.hub is not None and self.stack.takes_options


@dataclass(frozen=True, kw_only=True)
class Request(Call):
    """One condition of a call, and how its adapters are trained.

    Without `needs_images`, an artist who has no folder in the condition is passed over, and not blocked.
    """

    config: TuningConfig
    condition: Condition
    variant: str | None = None
    needs_images: bool = True

    @property
    def stack_config(self) -> TuningConfig | None:
        return self.config if self.stack.takes_options else None

    @property
    def hold_out(self) -> int:
        return self.config.hold_out if self.stack.takes_options else 0

    @property
    def evaluation(self) -> str | None:
        """What the evaluation loss of our own trainer is measured on; None where there is none."""
        recipe = self.spec.recipe
        if recipe is None or recipe["trainer"] != OWN_TRAINER or self.config.eval_timesteps == 0:
            return None
        return EvaluatedOn.HELD_OUT if self.hold_out else EvaluatedOn.IN_SAMPLE

    @cached_property
    def spec(self) -> AdapterSpec:
        """What each adapter should be; UsageError where the training script cannot be read."""
        traits = self.stack.traits
        return traits.adapter_spec(self.stack_config, traits.trainer(self.stack.script, self.train_script))

    @property
    def series(self) -> str:
        return series_name(self.stack.name, self.variant)

    @property
    def source(self) -> Source:
        """The folder of the images of its condition; UsageError where there is none."""
        return self.tree.source(self.condition)

    def adapter(self, artist: Artist) -> AdapterId:
        return AdapterId(self.stack.name, self.condition, artist, self.variant)

    def folder(self, artist: Artist) -> AdapterFolder:
        path = self.tree.adapter_dir(self.adapter(artist))
        return AdapterFolder(path, self.stack.traits.adapter_format)


class Action(StrEnum):
    """What a call does with a cell."""

    TRAIN = "train"
    # Its adapter is whole, and a small file beside the weights is written again.
    REPAIR = "repair"
    # Its adapter is there, and stays.
    SKIP = "skip"
    # Another call works on it, or a job in a queue will.
    WAIT = "wait"
    BLOCK = "block"
    # It has no images, and does not need any.
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One artist in one condition of a plan; `source` is the folder of all images of the condition.

    `status` is how the cell was when it was planned, `action` what the call does with it, and `reason` why.
    `weights` identifies the file of weights that lay there. `original` is what every condition is measured
    on, and whose captions hold for all. `left_out` are the stems in quarantine, and `held_out` those of
    --hold-out; `pairing` is without both. `sizes` are what the image files state, in pixels, and `examined`
    is what was found of decoded images; both by name. `lists_at` is where people find a list that is too long
    for a line. `marks` say in what the images do not pair with the originals. `notes` are kept in the record
    only.
    """

    request: Request
    source: Path
    artist: Artist
    pairing: Pairing
    status: AdapterStatus
    action: Action
    reason: str = ""
    findings: tuple[Finding, ...] = ()
    lists_at: str = "-v"
    marks: tuple[str, ...] = ()
    sizes: Mapping[str, Size] = field(default_factory=dict)
    examined: Mapping[str, Examined] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    weights: FileIdentity = None
    original: ImageFolder | None = None
    left_out: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    @property
    def existing(self) -> State:
        """How the weights are that lay there; WAITING where there were none."""
        return self.status.weights or State.WAITING

    @property
    def state(self) -> State:
        match self.action:
            case Action.TRAIN:
                return State.WAITING
            case Action.REPAIR | Action.SKIP:
                return self.existing
            case Action.WAIT:
                return State.RUNNING if self.status.job is None else State.QUEUED
            case Action.BLOCK:
                return State.BLOCKED
        return State.NO_DATA

    @property
    def images(self) -> ImageFolder:
        return self.pairing.images

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings of a target that may be trained, as people read them."""
        if self.action is Action.BLOCK:
            return ()
        return tuple(finding.line(self.lists_at) for finding in self.findings)

    @property
    def dose(self) -> Dose | None:
        return Dose.of(self.examined.values())

    @property
    def adapter(self) -> AdapterId:
        return self.request.adapter(self.artist)

    @property
    def folder(self) -> AdapterFolder:
        return self.request.folder(self.artist)

    @property
    def step_count(self) -> int:
        return self.request.config.step_count(len(self.images.names))

    @property
    def upload_job(self) -> Upload:
        prefix = self.request.stack.traits.hub_prefix
        return Upload.from_adapter(self.adapter, self.folder.path, prefix, self.request.hub)

    @property
    def inputs(self) -> TrainingInputs:
        config, tree = self.request.config, self.request.tree
        original = None if self.original is None else self.original.path
        shows = config.validation_prompt is not None
        return TrainingInputs(
            input_dir=self.images.path,
            output_dir=self.folder.path,
            eval_data_dir=original,
            base_samples_dir=tree.base_samples(self.request.series) if shows else None,
            caption_data_dir=original if config.captions else None,
            pair_with_dir=None if self.pairing.original is None else self.pairing.original.path,
            leave_out=self.left_out,
            notes=(*(finding.text for finding in self.findings), *self.notes),
        )

    @cached_property
    def command(self) -> list[str]:
        request = self.request
        words = [*option_words(request.config), f"--stall-minutes={request.stall_minutes:g}"]
        if request.hub is None or not request.uploads:
            words.append("--no-push-to-hub")
        else:
            words += ["--push-to-hub", f"--hub-model-id={self.upload_job.repository}", *request.hub.words()]
        if request.train_script is not None:
            words.append(f"--train-script={request.train_script}")
        words += self.inputs.wrapper_words()
        return request.stack.words(self.images.path, self.folder.path, words)

    def captions(self) -> Captions | None:
        return Captions.read(self.images, self.original) if self.request.config.captions else None

    def judge(self) -> AdapterState:
        """Look in full at what lies in the adapter's folder now."""
        return judge_adapter(self.folder, self.request.spec, self.images, captions=self.captions(), full=True)
