"""What a call of apply_tuning asks for, and one condition of it."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mimicry.study import AdapterId, Artist, Condition, EvaluatedOn, Source, StudyTree
from mimicry.study.selection import Selection
from mimicry.study.tree import series_name
from mimicry.tuning.adapters import AdapterFolder, AdapterSpec
from mimicry.tuning.adapters.recipe import OWN_TRAINER
from mimicry.tuning.hub.upload import HubOptions
from mimicry.tuning.options.config import TuningConfig
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

    `variant` names the study beside the usual one that they belong to. Without `needs_images`, an artist who
    has no folder in the condition is passed over, and not blocked.
    """

    config: TuningConfig
    condition: Condition
    variant: str | None = None
    needs_images: bool = True

    @property
    def stack_config(self) -> TuningConfig | None:
        """The hyper-parameters, as far as the stack takes any."""
        return self.config if self.stack.takes_options else None

    @property
    def hold_out(self) -> int:
        """How many paintings of each artist are held out of training."""
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
        """What each adapter should be.

        Raises:
            UsageError: the training script cannot be read.
        """
        traits = self.stack.traits
        return traits.adapter_spec(self.stack_config, traits.trainer(self.stack.script, self.train_script))

    @property
    def series(self) -> str:
        """The folder of all adapters that are to have one recipe: of the stack, or of a variant of it."""
        return series_name(self.stack.name, self.variant)

    @property
    def source(self) -> Source:
        """The folder of the images of its condition.

        Raises:
            UsageError: there is none.
        """
        return self.tree.source(self.condition)

    def adapter(self, artist: Artist) -> AdapterId:
        return AdapterId(self.stack.name, self.condition, artist, self.variant)

    def folder(self, artist: Artist) -> AdapterFolder:
        path = self.tree.adapter_dir(self.adapter(artist))
        return AdapterFolder(path, self.stack.traits.adapter_format)
