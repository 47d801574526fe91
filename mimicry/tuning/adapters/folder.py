"""The files of one adapter: their names, what they must hold, and how they come to be there.

An adapter is complete when its weights lie under their final name and hold what they promise. The weights
are written last, so that their name is the sign of completion.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken
from mimicry.common.files import read_json, set_aside, sha256_file, write_json
from mimicry.tuning.adapters.safetensors_file import SafetensorsFile, write_canonically

WEIGHTS = "pytorch_lora_weights.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TRAINING_RUN = "training_run.json"
METRICS = "metrics.jsonl"
TRAIN_LOG = "train.log"
# The status in training_run.json of a training that was refused: nothing went wrong, and nothing was done.
BLOCKED = "blocked"
SAMPLES = "samples"
# Within a checkpoint of our own trainer.
CHECKPOINT_FACTS = "checkpoint.json"
_OF_ONE_RUN = (WEIGHTS, ADAPTER_CONFIG, TRAINING_RUN, METRICS, SAMPLES)
_CHECKPOINT = re.compile(r"^checkpoint-([1-9][0-9]*)$")
# Files and folders that are written, or on their way out. In a folder that nobody works in they are litter.
_TEMPORARY = re.compile(r"^\.(tmp|saving|checkpoint|claim)-")

KEY_PREFIX = "transformer."
# Where diffusers puts the arguments of LoraConfig into the header of weights, each with the prefix.
_HEADER_FACTS = "lora_adapter_metadata"
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
_KEY = re.compile(r"^transformer\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """What the weights of a whole adapter say of themselves."""

    rank: int
    modules: tuple[str, ...]
    sha256: str

    def config(self, base_model: str | None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the content of adapter_config.json, which peft reads.

        Args:
            options: those that it was trained with, as far as they are known.
        """
        options = options or {}
        chosen = chooses_modules(options.get("lora_layers"), options.get("lora_blocks"))
        return {
            "peft_type": "LORA",
            "task_type": None,
            "auto_mapping": None,
            "base_model_name_or_path": base_model,
            "inference_mode": True,
            **lora_facts(
                self.rank,
                self.modules if chosen else _shortest_names(self.modules),
                options.get("lora_dropout", 0.0),
            ),
        }


def chooses_modules(lora_layers: str | None, lora_blocks: str | None) -> bool:
    """Return whether these options ask for other modules than the TARGET_MODULES of all blocks."""
    return lora_layers is not None or lora_blocks is not None


def lora_facts(rank: int, target_modules: Sequence[str], dropout: float = 0.0) -> dict[str, Any]:
    """Return the arguments of peft's LoraConfig that our adapters are made with.

    They stand in adapter_config.json and in the header of the weights: few, so that every version of peft
    understands them, and in a fixed order, so that the same adapter is the same bytes.
    """
    return {
        "bias": "none",
        "init_lora_weights": "gaussian",
        "lora_alpha": rank,
        "lora_dropout": dropout,
        "r": rank,
        "target_modules": sorted(target_modules),
    }


def check_header(path: Path, rank: int | None) -> tuple[SafetensorsFile, tuple[str, ...], int]:
    """Check names and shapes in the header of the weights at `path`: cheap, no value is read.

    Args:
        rank: the rank that the adapter should have; None accepts any single one.

    Returns:
        The opened file, the modules that have a LoRA, and their rank.

    Raises:
        AdapterBroken: it is no safetensors file, or no LoRA of that rank.
    """
    file = SafetensorsFile.open(path)
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, entry in file.tensors.items():
        match = _KEY.match(key)
        if match is None or len(entry.shape) != 2:
            raise AdapterBroken(f"{path} holds {key} of shape {entry.shape}, which is no part of a LoRA")
        sides.setdefault(match["module"], {})[match["side"]] = entry.shape
    ranks = set()
    for module, shapes in sides.items():
        if set(shapes) != {"A", "B"}:
            raise AdapterBroken(f"{path} holds one half only of the LoRA of {module}")
        ranks |= {shapes["A"][0], shapes["B"][1]}
    if len(ranks) != 1:
        raise AdapterBroken(f"{path} holds LoRAs of ranks {sorted(ranks)} where one rank is expected")
    (found,) = ranks
    if rank is not None and found != rank:
        raise AdapterBroken(f"{path} has rank {found} where {rank} was asked for")
    return file, tuple(sorted(sides)), found


def check_weights(path: Path, rank: int | None) -> Adapter:
    """Check the weights at `path` in full: names, shapes, every value.

    Raises:
        AdapterBroken: as for `check_header`; or a value is not finite, or all lora_B are zero, which means
            that nothing was trained.
    """
    file, modules, found = check_header(path, rank)
    infinite = [key for key in file.tensors if not file.is_finite(key)]
    if infinite:
        raise AdapterBroken(f"{path} holds values that are no finite numbers, first in {infinite[0]}")
    if all(file.is_zero(f"{KEY_PREFIX}{module}.lora_B.weight") for module in modules):
        raise AdapterBroken(f"{path} is untrained: every lora_B is zero")
    return Adapter(rank=found, modules=modules, sha256=sha256_file(path))


def check_adapter(output_dir: Path, rank: int | None) -> Adapter:
    """Check the adapter in `output_dir` in full, its sha256 against training_run.json too.

    Raises:
        AdapterBroken: see `check_weights`; or the weights are not those that training_run.json is about.
    """
    adapter = check_weights(output_dir / WEIGHTS, rank)
    run = read_training_run(output_dir)
    if run is not None and run_weights_sha256(run) != adapter.sha256:
        raise AdapterBroken(f"{output_dir / WEIGHTS} is not the file whose sha256 stands in {TRAINING_RUN}")
    return adapter


def check_unrecorded(output_dir: Path, rank: int | None) -> None:
    """Check an adapter without training_run.json as far as its headers tell: the weights and what peft reads.

    An adapter_config.json need not be there. What it says of the LoRA must be what the weights say.

    Raises:
        AdapterBroken: as for `check_header`; or adapter_config.json is of another LoRA, or cannot be read.
    """
    file, _, found = check_header(output_dir / WEIGHTS, rank)
    path = output_dir / ADAPTER_CONFIG
    try:
        config = read_json(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterBroken(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterBroken(f"{path} is no JSON object")
    facts = {"r": found, **_stated_facts(file)}
    wrong = [name for name, value in facts.items() if _in_order(config.get(name)) != _in_order(value)]
    if wrong:
        raise AdapterBroken(f"{path} has other {', '.join(wrong)} than the weights beside it")


def _stated_facts(file: SafetensorsFile) -> dict[str, Any]:
    """Return what the header of LoRA weights says of how they were made, as far as it says so."""
    try:
        stated = json.loads(file.metadata.get(_HEADER_FACTS, "{}"))
        return {name: stated[KEY_PREFIX + name] for name in lora_facts(0, ()) if KEY_PREFIX + name in stated}
    except (ValueError, TypeError, RecursionError) as error:
        raise AdapterBroken(f"{file.path} has a header whose {_HEADER_FACTS} cannot be read") from error


def _in_order(value: Any) -> Any:
    # Other tools write sets in whatever order.
    return sorted(map(str, value)) if isinstance(value, list) else value


def config_fault(output_dir: Path) -> str:
    """Say what is wrong with the adapter_config.json beside a complete adapter of ours; empty when nothing.

    All that it says follows from the weights and from training_run.json: see `write_config`.
    """
    expected = _expected_config(output_dir)
    try:
        found = read_json(output_dir / ADAPTER_CONFIG)
    except FileNotFoundError:
        found = None
    except (OSError, ValueError, RecursionError):
        found = "no JSON"
    if expected is None or found == expected:
        return ""
    return f"{ADAPTER_CONFIG} " + ("is missing" if found is None else "is not the one that was written")


def write_config(output_dir: Path) -> None:
    """Write the adapter_config.json of a complete adapter of ours again."""
    write_json(output_dir / ADAPTER_CONFIG, _expected_config(output_dir))


def _expected_config(output_dir: Path) -> dict[str, Any] | None:
    """Return what the adapter_config.json of a complete adapter should hold; None when it is not ours."""
    run = read_training_run(output_dir) or {}
    paths = run.get("paths")
    if not isinstance(paths, dict) or "pretrained_model_name_or_path" not in paths or "options" not in run:
        return None
    _, modules, rank = check_header(output_dir / WEIGHTS, None)
    adapter = Adapter(rank=rank, modules=modules, sha256="")
    return adapter.config(paths["pretrained_model_name_or_path"], run["options"])


def publish(source: Path, output_dir: Path, training_run: dict[str, Any], base_model: str | None) -> Adapter:
    """Check new weights and put them, with their two JSON files, into `output_dir`; the weights come last.

    Args:
        source: the weights as they were saved, under another name or in another folder.
        training_run: content of training_run.json; `weights` is filled in here.

    Raises:
        AdapterBroken: the weights are not whole, or of another rank than the options of `training_run`
            say; nothing was published.
    """
    canonical = source.with_name(source.name + ".canonical")
    try:
        write_canonically(source, canonical)
        adapter = check_weights(canonical, recorded_rank(training_run))
        weights = {
            "sha256": adapter.sha256,
            "bytes": canonical.stat().st_size,
            "modules": len(adapter.modules),
        }
        write_json(output_dir / ADAPTER_CONFIG, adapter.config(base_model, training_run.get("options")))
        write_json(output_dir / TRAINING_RUN, {**training_run, "weights": weights})
        canonical.replace(output_dir / WEIGHTS)
    finally:
        canonical.unlink(missing_ok=True)
    return adapter


def read_training_run(output_dir: Path) -> dict[str, Any] | None:
    """Return training_run.json, or None when there is none.

    Raises:
        AdapterBroken: it is there and cannot be read.
    """
    path = output_dir / TRAINING_RUN
    try:
        run = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterBroken(f"{path} cannot be read: {error}") from error
    if not isinstance(run, dict):
        raise AdapterBroken(f"{path} is no JSON object")
    images = run.get("images", [])
    objects = [
        run.get("options", {}),
        run.get("recipe", {}),
        *(images if isinstance(images, list) else [None]),
    ]
    if not all(isinstance(value, dict) for value in objects):
        raise AdapterBroken(f"{path} is none of ours: its options, recipe or images are of another kind")
    return run


def recorded_rank(run: Mapping[str, Any]) -> int | None:
    """Return the rank that a training_run.json says was asked for; None where it does not say."""
    rank: int | None = run.get("options", {}).get("rank")
    return rank


def run_weights_sha256(run: Mapping[str, Any]) -> str | None:
    """Return the sha256 of the weights that a training_run.json is about; None while it has none."""
    weights = run.get("weights")
    return weights.get("sha256") if isinstance(weights, dict) else None


def checkpoint_names(output_dir: Path) -> list[str]:
    """Return the names of the checkpoints in `output_dir`, whole or not, the newest first."""
    try:
        matches = [_CHECKPOINT.match(path.name) for path in output_dir.iterdir()]
    except FileNotFoundError:
        return []
    steps = sorted((int(match[1]) for match in matches if match is not None), reverse=True)
    return [f"checkpoint-{step}" for step in steps]


def litter(output_dir: Path) -> list[str]:
    """Return the names of what killed processes were writing in `output_dir`."""
    try:
        return [path.name for path in output_dir.iterdir() if _TEMPORARY.match(path.name)]
    except OSError:
        return []


def spent_checkpoints(output_dir: Path) -> list[str]:
    """Return the names of our trainer's checkpoints beside the adapter that came of them."""
    names = checkpoint_names(output_dir) if (output_dir / WEIGHTS).exists() else []
    return [name for name in names if (output_dir / name / CHECKPOINT_FACTS).exists()]


def remove(output_dir: Path, names: Sequence[str]) -> None:
    """Remove files and folders of `output_dir`, as far as that can be done. For who has claimed it."""
    for name in names:
        path = output_dir / name
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_adapter_aside(output_dir: Path, reason: str) -> Path | None:
    """Move the files of an adapter out of the way; nothing is deleted, and train.log goes on.

    A checkpoint that its training has left goes with it: a new training must not go on from there.
    """
    return set_aside(output_dir, [*_OF_ONE_RUN, *checkpoint_names(output_dir)], reason)


def _shortest_names(modules: tuple[str, ...]) -> list[str]:
    # peft matches a module by the end of its name. The short names are right only if every module that
    # ends so was trained, which holds when the blocks are numbered from 0 without a gap.
    ends = {module.partition(".attn.")[2] for module in modules}
    blocks = {module.partition(".attn.")[0] for module in modules}
    numbered = {f"transformer_blocks.{number}" for number in range(len(blocks))}
    names = {f"attn.{end}" for end in ends}
    if blocks == numbered and names == set(TARGET_MODULES):
        return sorted(names)
    return list(modules)
