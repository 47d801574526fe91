"""Which modules of the transformer get a LoRA, and the format of the adapters that result. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mimicry.common.errors import AdapterBroken, UsageError, nearest
from mimicry.tuning.adapters import AdapterFormat, SafetensorsFile
from mimicry.tuning.hf_diffusers.spec.base_model import BaseModel
from mimicry.tuning.options.config import TuningConfig

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

_WEIGHT = ".weight"


def chooses_modules(lora_layers: str | None, lora_blocks: str | None) -> bool:
    """Return whether these options ask for other modules than the TARGET_MODULES of all blocks."""
    return lora_layers is not None or lora_blocks is not None


class SD3AdapterFormat(AdapterFormat):
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


def named_layers(config: TuningConfig) -> Sequence[str]:
    """Return the layers that get a LoRA, by the ends of their names."""
    return TARGET_MODULES if config.lora_layers is None else _items(config.lora_layers)


def choose_modules(known: Sequence[str], block_count: int, config: TuningConfig) -> list[str]:
    """Return the full names of the modules that lora_layers and lora_blocks ask for, sorted.

    A layer is named by the end of its name, from a dot on. With lora_blocks only the layers of those blocks
    are meant. `known` are the names of all linear layers of the transformer.

    Raises:
        UsageError: the model, or those of its blocks, have no such layer; or it has no such block.
    """
    within, where = known, ""
    problems: list[str] = []
    if config.lora_blocks is not None:
        blocks = _items(config.lora_blocks)
        problems = _block_problems(blocks, block_count)
        if not problems:  # else layers are looked for in all blocks
            within = [name for name in known if _block(name) in blocks]
            where = f" in blocks {', '.join(blocks)}"
    # SD3's last block lacks one of those that are usual.
    layers = named_layers(config)
    ends = sorted({_without_block(name) for name in within})
    problems += [
        f"--lora-layers: {layer!r} is not a layer{where}; {nearest(layer, ends)}"
        for layer in layers
        if config.lora_layers is not None and not _ending(layer, within)
    ]
    if problems:
        raise UsageError(*problems)
    return sorted({name for layer in layers for name in _ending(layer, within)})


def module_problems(model: BaseModel, config: TuningConfig) -> list[str]:
    """Return which layers or blocks of `config` the model does not have, told by its files alone."""
    if not chooses_modules(config.lora_layers, config.lora_blocks):
        return []
    try:
        block_count = int(model.config_of("transformer")["num_layers"])
        choose_modules(_linear_layers(model), block_count, config)
    except UsageError as error:
        return list(error.problems)
    except (OSError, ValueError, KeyError, TypeError, AdapterBroken):
        return []  # the model's own problems are told elsewhere, and the trainer looks again
    return []


def _linear_layers(model: BaseModel) -> list[str]:
    # Their weights, and no others, are matrices.
    return [
        name.removesuffix(_WEIGHT)
        for path in sorted((model.folder / "transformer").glob("*.safetensors"))
        for name, shape in SafetensorsFile.open(path).shapes.items()
        if name.endswith(_WEIGHT) and len(shape) == 2
    ]


def _block_problems(blocks: Sequence[str], block_count: int) -> list[str]:
    return [
        f"--lora-blocks: {block!r} is not a block of this model; it takes numbers from 0 to {block_count - 1}"
        for block in blocks
        if block not in map(str, range(block_count))
    ]


def _ending(layer: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name == layer or name.endswith(f".{layer}")]


def _items(words: str) -> list[str]:
    return [item.strip() for item in words.split(",")]


def _block(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "transformer_blocks" else None


def _without_block(name: str) -> str:
    return name if _block(name) is None else name.split(".", 2)[2]
