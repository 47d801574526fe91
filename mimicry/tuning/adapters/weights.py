"""The weights of an adapter: what must hold of them, cheaply by the header or in full by every value."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import sha256_file
from mimicry.tuning.adapters.safetensors_file import SafetensorsFile, header_and_size

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


# Where diffusers puts the arguments of LoraConfig into the header of weights, each with its component.
_LORA_ARGUMENTS = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraHeader:
    """What the header of weights says: `modules` have a LoRA, of `rank` at most, in these `components`.

    A module's name begins with its component only where there are several.
    """

    file: SafetensorsFile
    rank: int
    modules: tuple[str, ...]
    components: tuple[str, ...]

    def stated_arguments(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the LoraConfig arguments `names` as far as the header tells, or raise AdapterBroken."""
        prefix = f"{self.components[0]}."
        try:
            stated = json.loads(self.file.metadata.get(_LORA_ARGUMENTS, "{}"))
            return {name: stated[prefix + name] for name in names if prefix + name in stated}
        except (ValueError, TypeError, RecursionError) as error:
            raise AdapterBroken(
                f"{self.file.path} has a header whose {_LORA_ARGUMENTS} cannot be read"
            ) from error


@dataclass(frozen=True)
class Adapter:
    """What the weights of a whole adapter say of themselves."""

    rank: int
    modules: tuple[str, ...]
    sha256: str
    byte_count: int

    def record(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "bytes": self.byte_count, "modules": len(self.modules)}


# Adapters of one recipe have the same header, byte by byte. Each has hundreds of tensors, and there are
# hundreds of adapters, so a header that was found good is remembered while the program runs.
_good_headers: dict[tuple[tuple[bytes, int] | None, AdapterFormat, int | None], LoraHeader] = {}
_MOST_HEADERS = 16


def check_header(path: Path, form: AdapterFormat, rank: int | None) -> LoraHeader:
    """Check names and shapes in the header of the weights at `path`: cheap, no value is read.

    Raises:
        AdapterBroken: it is no safetensors file, or no adapter of this format and of `rank`; None is any.
    """
    begin = header_and_size(path)
    known = _good_headers.get((begin, form, rank))
    if known is not None:
        return replace(known, file=replace(known.file, path=path))
    header = _checked_header(path, form, rank)
    # One that was replaced meanwhile is not remembered.
    if begin is not None and header_and_size(path) == begin:
        if len(_good_headers) >= _MOST_HEADERS:
            _good_headers.clear()
        _good_headers[begin, form, rank] = header
    return header


def _checked_header(path: Path, form: AdapterFormat, rank: int | None) -> LoraHeader:
    file = SafetensorsFile.open(path)
    ranks: dict[tuple[str, str], dict[bool, int]] = {}
    for key, shape in file.shapes.items():
        tensor = form.parse(key, shape)
        if tensor is None:
            allowed = f" of {', '.join(form.components)}" if form.components else ""
            raise AdapterBroken(f"{path} holds {key} of shape {shape}, which is not part of a LoRA{allowed}")
        ranks.setdefault((tensor.component, tensor.module), {})[tensor.is_b] = tensor.rank(shape)
    for (_, module), sides in ranks.items():
        if len(sides) != 2:
            raise AdapterBroken(f"{path} holds only one half of the LoRA of {module}")
    found = {side for sides in ranks.values() for side in sides.values()}
    if form.one_rank and len(found) != 1:
        raise AdapterBroken(f"{path} holds LoRAs of ranks {sorted(found)} where one rank is expected")
    if not found or any(len(set(sides.values())) != 1 for sides in ranks.values()):
        raise AdapterBroken(f"{path} holds LoRAs of ranks {sorted(found)} whose halves do not fit")
    if form.one_rank and rank is not None and found != {rank}:
        raise AdapterBroken(f"{path} has rank {max(found)} where {rank} was asked for")
    components = sorted({component for component, _ in ranks})
    modules = sorted(f"{part}.{module}" if len(components) > 1 else module for part, module in ranks)
    return LoraHeader(file, max(found), tuple(modules), tuple(components))


def check_weights(path: Path, form: AdapterFormat, rank: int | None) -> Adapter:
    """Check the weights at `path` in full: names, shapes, every value.

    Raises:
        AdapterBroken: as for `check_header`; or a value is not finite, or all lora_B are zero: untrained.
    """
    header = check_header(path, form, rank)
    is_trained = False
    for values in header.file.values():
        if not values.is_finite():
            raise AdapterBroken(f"{path} holds values that are not finite numbers, in {values.name}")
        tensor = form.parse(values.name, values.shape)
        is_trained = is_trained or (tensor is not None and tensor.is_b and not values.is_zero())
    if not is_trained:
        raise AdapterBroken(f"{path} is untrained: every lora_B is zero")
    return Adapter(header.rank, header.modules, sha256_file(path), path.stat().st_size)


def lora_arguments(rank: int, target_modules: Sequence[str], dropout: float = 0.0) -> dict[str, Any]:
    """Return the arguments of peft's LoraConfig that our adapters are made with, few and in a fixed order."""
    return {
        "bias": "none",
        "init_lora_weights": "gaussian",
        "lora_alpha": rank,
        "lora_dropout": dropout,
        "r": rank,
        "target_modules": sorted(target_modules),
    }


LORA_ARGUMENTS = tuple(lora_arguments(0, ()))


def peft_config(
    form: AdapterFormat,
    adapter: Adapter | LoraHeader,
    base_model: str | None,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of adapter_config.json for `adapter`, trained with these options."""
    options = options or {}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        **lora_arguments(
            adapter.rank, form.target_modules(adapter.modules, options), options.get("lora_dropout", 0.0)
        ),
    }
