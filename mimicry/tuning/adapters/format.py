"""Which tensors the weights of a stack's adapters hold, and how they are named."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The two factors of a LoRA, in the names that peft, diffusers and the older example scripts give them.
_KEY = re.compile(
    r"^(?P<component>[a-z]+(?:_[a-z0-9]+)*)\.(?P<module>.+)\."
    r"(?:(?P<down>lora_A|lora\.down|lora_linear_layer\.down)|(?P<up>lora_B|lora\.up|lora_linear_layer\.up))"
    r"\.weight$"
)
# Linear layers, and convolutions.
_DIMENSIONS = (2, 4)


@dataclass(frozen=True)
class LoraTensor:
    """Which factor of a module's LoRA a tensor is: A, of shape (rank, in), or B, of shape (out, rank)."""

    component: str
    module: str
    is_b: bool

    def rank(self, shape: Sequence[int]) -> int:
        return shape[1] if self.is_b else shape[0]


@dataclass(frozen=True)
class AdapterFormat:
    """The format of a stack's adapters: tensors named `{component}.{module}.lora_A.weight`, and lora_B.

    `components` are the models that may have a LoRA, such as unet or text_encoder; none allows all.
    `one_rank` says whether all modules have the rank that was asked for.
    """

    components: tuple[str, ...] = ()
    one_rank: bool = False

    def parse(self, key: str, shape: Sequence[int]) -> LoraTensor | None:
        """Return what the tensor `key` of that shape is; None when it is not part of such an adapter."""
        match = _KEY.match(key)
        if match is None or len(shape) not in _DIMENSIONS:
            return None
        if self.components and match["component"] not in self.components:
            return None
        return LoraTensor(match["component"], match["module"], is_b=match["up"] is not None)

    def target_modules(self, modules: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Return how adapter_config.json names the trained `modules` of an adapter with these options."""
        return list(modules)


ANY_LORA = AdapterFormat()
