"""The format of this stack's adapters: LoRAs of the transformer of Stable Diffusion 3. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mimicry.tuning.adapters.weights import AdapterFormat

# The modules that get a LoRA, by the end of their names: the attention projections of each joint block.
TARGET_MODULES = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_q",
    "attn.to_v",
)


def chooses_modules(lora_layers: str | None, lora_blocks: str | None) -> bool:
    """Return whether these options ask for other modules than the TARGET_MODULES of all blocks."""
    return lora_layers is not None or lora_blocks is not None


class SD3AdapterFormat(AdapterFormat):
    """LoRAs of one rank on the transformer."""

    def target_modules(self, modules: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Return the ends of the modules' names where they are the usual ones of all blocks."""
        if chooses_modules(options.get("lora_layers"), options.get("lora_blocks")):
            return list(modules)
        # peft matches a module by the end of its name. The short names are right only if every module that
        # ends so was trained, which holds when the blocks are numbered from 0 without a gap.
        ends = {module.partition(".attn.")[2] for module in modules}
        blocks = {module.partition(".attn.")[0] for module in modules}
        numbered = {f"transformer_blocks.{number}" for number in range(len(blocks))}
        names = {f"attn.{end}" for end in ends}
        return sorted(names) if blocks == numbered and names == set(TARGET_MODULES) else list(modules)


ADAPTER_FORMAT = SD3AdapterFormat(components=("transformer",), one_rank=True)
