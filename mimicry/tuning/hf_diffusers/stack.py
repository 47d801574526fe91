"""What this stack knows of its adapters: see `mimicry.tuning.stacks`. No torch."""

from pathlib import Path

from mimicry.tuning.adapters.judge import AdapterSpec
from mimicry.tuning.adapters.recipe import recipe, trainer_identity
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.hf_diffusers.spec.preflight import (
    class_images_of,
    config_problems,
    config_warnings,
    host_bytes,
    needed_bytes,
)
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.stacks import StackTraits


class Traits(StackTraits):
    """LoRAs of Stable Diffusion 3.x."""

    def trainer(self, script: Path | None, train_script: Path | None) -> str:
        """Return our own trainer's name, whatever started it; or name and hash of --train-script."""
        return trainer_identity(train_script)

    def adapter_spec(self, config: TuningConfig | None, trainer: str) -> AdapterSpec:
        """Return what is asked for; reads the base model's files, not its values."""
        assert config is not None  # the command of this stack takes {options}
        model = BaseModel.find(config)
        identity = None if model is None else model.identity()
        return AdapterSpec(config.rank, recipe(config, identity, trainer), class_images_of(config))

    def problems(self, config: TuningConfig | None, *, network: bool) -> list[str]:
        """Return what is wrong with base model, libraries and class images."""
        assert config is not None
        return config_problems(config, network=network)

    def warnings(self, config: TuningConfig | None) -> list[str]:
        """Return what is most likely not meant."""
        assert config is not None
        return config_warnings(config)

    def disk_bytes(self, config: TuningConfig | None, adapter_count: int) -> int:
        """Return about how much the adapters and the checkpoints of one of them take."""
        assert config is not None
        return needed_bytes(config, adapter_count)

    def host_bytes(self, config: TuningConfig | None) -> int:
        """Return the size of the largest part of the base model, for each process."""
        assert config is not None
        return host_bytes(config)


TRAITS = Traits(hub_prefix="sd35-lora", adapter_format=ADAPTER_FORMAT)
