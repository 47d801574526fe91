"""What of an adapter's folder goes to the Hub: the weights, and copies of the JSON files that tell nothing
about this machine or its user.

The files on disk stay as they are. Whatever cannot be told apart from a path of this machine is left out:
losing a harmless text costs less than publishing a user's name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken, UploadFailed
from mimicry.common.files import read_json, sha256_file
from mimicry.common.scrubbing import scrub
from mimicry.tuning.adapters.folder import ADAPTER_CONFIG, WEIGHTS
from mimicry.tuning.adapters.safetensors_file import SafetensorsFile
from mimicry.tuning.adapters.training_run import TRAINING_RUN, TrainingRun
from mimicry.tuning.hub.identity import MADE_FOR, made_for
from mimicry.tuning.hub.model_card import model_card
from mimicry.tuning.hub.upload import HUB_ID, UploadJob

REMOVED = "(left out: a path of the machine that trained this)"

# `hub` records an upload that was made: sent along, it would make the same adapter a new commit.
_DROPPED_KEYS = frozenset({"command", "paths", "host", "hostname", "user", "hub"})
_MACHINE_PATH = re.compile(
    r"(?<![\w/.])/(?=[^\s/])"  # a slash that begins a path; in URLs and in a/b it stands after something
    r"|/(?:home|Users)/"
    r"|~\w*/"
    r"|file:/"
    r"|(?<!\w)[A-Za-z]:[\\/](?!/)"
    r"|\\\\\w"
)


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The final files of one adapter as they go out: the weights from disk, all else from memory."""

    weights: Path
    texts: dict[str, bytes]


def hub_files(job: UploadJob) -> HubFiles:
    """Read the adapter in `job.folder` and return what goes to the Hub.

    Raises:
        AdapterBroken: the weights cannot be read, or are not those that training_run.json is about.
        UploadFailed: another file is missing or broken, or the weights' header names a path or a token.
    """
    if job.base_model_id is not None and not HUB_ID.fullmatch(job.base_model_id):
        raise UploadFailed(
            f"--base-model-id {job.base_model_id!r} is no model id of the Hub: it must be owner/name, "
            "as stabilityai/stable-diffusion-3.5-large"
        )
    _check_header(job.folder / WEIGHTS)
    run = _read_object(job.folder / TRAINING_RUN)
    # Somebody else's stack, whose record is ours, need not write one.
    needless = "stack" in run and not (job.folder / ADAPTER_CONFIG).exists()
    adapter = {} if needless else _read_object(job.folder / ADAPTER_CONFIG)
    expected = TrainingRun(run).weights_sha256
    if expected is not None and sha256_file(job.folder / WEIGHTS) != expected:
        raise AdapterBroken(f"{job.folder / WEIGHTS} is not the file whose sha256 stands in {TRAINING_RUN}")
    used = _used_base_model(run, adapter)
    base_model = used if is_hub_model(used) else job.base_model_id
    local_names = {str(name): base_model for name in (used, adapter.get("base_model_name_or_path")) if name}
    run = sanitised(run, local_names)
    run[MADE_FOR] = made_for(job.protection, job.countermeasure, job.artist, job.split, job.style)
    adapter = sanitised(adapter, local_names) | {"base_model_name_or_path": base_model}
    texts = {
        **({} if needless else {ADAPTER_CONFIG: _json_text(adapter)}),
        TRAINING_RUN: _json_text(run),
        "README.md": model_card(job, run, base_model),
    }
    return HubFiles(
        weights=job.folder / WEIGHTS,
        texts={name: text.encode("utf-8", "replace") for name, text in texts.items()},
    )


def is_hub_model(name: str | None) -> bool:
    """Say whether `name` means a model on the Hub rather than a folder of this machine."""
    return name is not None and HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def names_machine(text: str) -> bool:
    """Say whether `text` is or holds an absolute path, the home folder or something like a token."""
    home = str(Path.home())
    return _MACHINE_PATH.search(text) is not None or (len(home) > 1 and home in text) or scrub(text) != text


def sanitised(value: Any, replacements: Mapping[str, str | None]) -> Any:
    """Return a copy of the JSON `value` without what tells about this machine.

    A text that is a key of `replacements` becomes its value there. One that names the machine is left out of
    an object, key and all, and becomes `REMOVED` in a list. Keys of objects that hold commands, paths or host
    names, or that name the machine themselves, are left out whatever their value, and so is `hub`.
    """
    if isinstance(value, dict):
        items = {
            key: sanitised(item, replacements)
            for key, item in value.items()
            if key not in _DROPPED_KEYS and not names_machine(key)
        }
        return {key: item for key, item in items.items() if item != REMOVED}
    if isinstance(value, list):
        return [sanitised(item, replacements) for item in value]
    if isinstance(value, str):
        if value in replacements:
            return replacements[value]
        return REMOVED if names_machine(value) else value
    return value


def _used_base_model(run: dict[str, Any], adapter: dict[str, Any]) -> str | None:
    # training_run.json knows better: its name is null for a folder, whatever that is called.
    base = run.get("base_model")
    name = base.get("name") if isinstance(base, dict) else adapter.get("base_model_name_or_path")
    return None if name is None else str(name)


def _check_header(weights: Path) -> None:
    for key, text in SafetensorsFile.open(weights).metadata.items():
        if names_machine(key) or names_machine(str(text)):
            raise UploadFailed(f"the header of {weights} names a path of this machine or a token, at {key!r}")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UploadFailed(f"{path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UploadFailed(f"{path} holds no JSON object")
    return value


def _json_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
