"""What a stack knows of its adapters. A stack says so in a `stack.py` beside its runner_config.json.

    from mimicry.tuning.stacks import StackTraits

    TRAITS = StackTraits(hub_prefix="sd15-lora")

What a stack does not say has the values below: LoRAs of any model, of any ranks. A stack that knows more
makes a subclass with methods of its own.
"""

from dataclasses import dataclass
from pathlib import Path

from mimicry.tuning.adapters import ANY_LORA, AdapterFormat, AdapterSpec
from mimicry.tuning.adapters.recipe import recipe, trainer_identity
from mimicry.tuning.options.config import TuningConfig

# What an artist's log and records take on disk.
LOG_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class StackTraits:
    """The adapters of a stack: how they are called on the Hub, what they hold, and what they need.

    `hub_prefix` begins the name of each repository on the Hub. Methods are given the hyper-parameters, or
    None where the stack's command takes no {options}.
    """

    hub_prefix: str
    adapter_format: AdapterFormat = ANY_LORA

    def trainer(self, script: Path | None, train_script: Path | None) -> str:
        """Return what tells the trainer from others in a recipe.

        Args:
            script: the first file of the stack's folder in its command; None when there is none.
            train_script: --train-script.
        """
        return trainer_identity(train_script or script)

    def adapter_spec(self, config: TuningConfig | None, trainer: str) -> AdapterSpec:
        """Return what an adapter should be that is trained with `config`: rank, and recipe to compare.

        Args:
            trainer: see `trainer`.
        """
        if config is None:
            return AdapterSpec()
        rank = config.rank if self.adapter_format.one_rank else None
        return AdapterSpec(rank, recipe(config, None, trainer))

    def problems(self, config: TuningConfig | None, *, network: bool) -> list[str]:
        """Return messages, such as that a base model is missing; if there are any, nothing is trained.

        It is not asked when there is nothing to train; a dry run shows the messages as warnings.

        Args:
            network: the network may be asked, and images decoded; else only what is quick is checked.
        """
        return []

    def warnings(self, config: TuningConfig | None) -> list[str]:
        """Return what is allowed on this machine and most likely not meant; shown with the plan, and kept."""
        return []

    def disk_bytes(self, config: TuningConfig | None, adapter_count: int) -> int:
        """Return about how much so many adapters take on disk, with the checkpoints of one in training."""
        return adapter_count * LOG_BYTES

    def host_bytes(self, config: TuningConfig | None) -> int:
        """Return about how much host memory a training takes when it reads its model; 0: not known.

        Where trainings run side by side, the next one begins when so much is free.
        """
        return 0
