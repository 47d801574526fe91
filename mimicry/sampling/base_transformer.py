"""The base model's transformer, on which adapters take turns.

As in training, a conditioning table stands in for a third of its weights where that is possible, so that a
GPU that trains an adapter can draw with it too. Pictures are the same to the last bit.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

from mimicry.common.errors import AdapterBroken
from mimicry.tuning.adapters import ANY_LORA, WEIGHTS
from mimicry.tuning.adapters.weights import check_header
from mimicry.tuning.hf_diffusers.sd3.modulation import trained_modulation
from mimicry.tuning.hf_diffusers.sd3.prompts import PromptEmbeds
from mimicry.tuning.hf_diffusers.sd3.sampling import NEGATIVE_PROMPT, StepModulation, sampling_modulations
from mimicry.tuning.hf_diffusers.sd3.transformer import (
    cache_obstacle,
    read_transformer,
)
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.hf_diffusers.training.device import free_memory, training_dtype
from mimicry.tuning.hf_diffusers.training.fused_layers import use_fused_lora
from mimicry.tuning.options.config import TuningConfig


@dataclass(frozen=True)
class BaseTransformer:
    """The transformer in memory, ready for some prompts; `adapter` puts an adapter on for a while.

    `modulations` has what it takes in place of each pooled prompt; it is empty for a whole transformer.
    """

    transformer: SD3Transformer2DModel
    modulations: Mapping[str, StepModulation]
    device: torch.device

    @classmethod
    def read(
        cls,
        model: BaseModel,
        config: TuningConfig,
        device: torch.device,
        prompts: Mapping[str, PromptEmbeds],
        *,
        steps: int,
        trained_layers: Collection[str],
    ) -> "BaseTransformer":
        """Read the transformer, and say so where it can have no conditioning table.

        Args:
            prompts: the negative prompt among them, on the device and in the precision of `config`.
            trained_layers: layers that the adapters train, as peft names them.
        """
        texts = list(prompts)
        obstacle = cache_obstacle(model, config, trained_layers, len(texts) * steps)
        if obstacle is not None and config.conditioning_table:
            print(f"no conditioning table: {obstacle}; the whole transformer is read", flush=True)
        transformer = read_transformer(
            model,
            config,
            device,
            training_dtype(config),
            cached_modulation=config.conditioning_table and obstacle is None,
        )
        made = sampling_modulations(
            transformer,
            model,
            config,
            list(prompts.values()),
            negative=texts.index(NEGATIVE_PROMPT),
            steps=steps,
            batch_size=1,
        )
        return cls(transformer.eval(), dict(zip(texts, made, strict=True)) if made else {}, device)

    @contextmanager
    def adapter(self, folder: Path | None) -> Iterator[None]:
        """Draw with the adapter in `folder` in the body; None is the base model alone. It leaves no trace.

        Raises:
            AdapterBroken: it does not fit the base model.
        """
        if folder is None:
            yield
            return
        try:
            try:
                self.transformer.load_lora_adapter(folder, weight_name=WEIGHTS, adapter_name="sampled")
            # peft and diffusers may raise any error here.
            except Exception as error:
                raise AdapterBroken(f"{folder} does not go with the base model: {error}") from error
            for name, parameter in self.transformer.named_parameters():
                if ".lora_" in name:
                    # As in training, whatever the precision of the base model.
                    parameter.data = parameter.data.to(self.device, torch.float32)
            self.transformer.eval()
            with use_fused_lora(self.transformer):
                yield
        finally:
            self.transformer.unload_lora()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Keep the transformer in host memory during the body."""
        self.transformer.to("cpu")
        free_memory(self.device)
        try:
            yield
        finally:
            self.transformer.to(self.device)

    @property
    def byte_count(self) -> int:
        return sum(parameter.nbytes for parameter in self.transformer.parameters())


def replaced_layers(model: BaseModel, folder: Path | None) -> list[str]:
    """Return the layers that the adapter in `folder` trains and that a conditioning table would replace."""
    if folder is not None:
        # Why an adapter cannot be read is said when it is put on.
        with suppress(AdapterBroken):
            modules = check_header(folder / WEIGHTS, ANY_LORA, None).modules
            return trained_modulation(int(model.config_of("transformer")["num_layers"]), modules)
    return []
