"""What is sent to the Hub of an adapter's folder: weights, copies of the JSON files without anything about
this machine or its user, and a README.md: how it was made, and what not to use it for.

Any text that could be a path of this machine is left out: losing a harmless text costs less than publishing
a user's name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimicry.common.errors import AdapterBroken, UploadFailed
from mimicry.common.files import read_json, sha256_file
from mimicry.common.tokens import scrub
from mimicry.tuning.adapters import ADAPTER_CONFIG, TRAINING_RUN, WEIGHTS, SafetensorsFile, TrainingRun
from mimicry.tuning.hub.names import is_model_id, model_id_problems
from mimicry.tuning.hub.upload import MADE_FOR, Upload

REMOVED = "(left out: a path of the machine that trained this)"

# `hub` records an earlier upload: with it, sending the same adapter again would make a new commit.
_DROPPED_KEYS = frozenset({"command", "paths", "host", "hostname", "user", "hub"})
_MACHINE_PATH = re.compile(
    r"(?<![\w/.])/(?=[^\s/])"  # a slash that begins a path; in URLs and in a/b something precedes it
    r"|/(?:home|Users)/"
    r"|~\w*/"
    r"|file:/"
    r"|(?<!\w)[A-Za-z]:[\\/](?!/)"
    r"|\\\\\w"
)


@dataclass(frozen=True, kw_only=True)
class HubFiles:
    """The final files of one adapter as they are sent: the weights from disk, the rest from memory."""

    weights: Path
    texts: dict[str, bytes]


def hub_files(job: Upload) -> HubFiles:
    """Read the adapter in `job.folder` and return what is sent to the Hub.

    Raises:
        AdapterBroken: the weights cannot be read, or do not match the sha256 in training_run.json.
        UploadFailed: another file is missing or broken, or the weights' header names a path or a token.
    """
    if problems := model_id_problems(job.base_model_id):
        raise UploadFailed(*problems)
    _check_header(job.folder / WEIGHTS)
    run = _read_object(job.folder / TRAINING_RUN)
    # A stack without an adapter_config.json of its own has a record that we wrote, which names the stack.
    without_config = "stack" in run and not (job.folder / ADAPTER_CONFIG).exists()
    adapter = {} if without_config else _read_object(job.folder / ADAPTER_CONFIG)
    expected = TrainingRun(run).weights_sha256
    if expected is not None and sha256_file(job.folder / WEIGHTS) != expected:
        raise AdapterBroken(f"{job.folder / WEIGHTS} is not the file whose sha256 is in {TRAINING_RUN}")
    # training_run.json comes first: its name is null for a folder, whatever that is called.
    base = run.get("base_model")
    used = base.get("name") if isinstance(base, dict) else adapter.get("base_model_name_or_path")
    on_hub = used is not None and is_model_id(str(used)) and not Path(str(used)).exists()
    base_model = str(used) if on_hub else job.base_model_id
    local_names = {str(name): base_model for name in (used, adapter.get("base_model_name_or_path")) if name}
    run = sanitised(run, local_names)
    run[MADE_FOR] = job.made_for
    adapter = sanitised(adapter, local_names) | {"base_model_name_or_path": base_model}
    texts = {
        **({} if without_config else {ADAPTER_CONFIG: _json_text(adapter)}),
        TRAINING_RUN: _json_text(run),
        "README.md": model_card(job, run, base_model),
    }
    return HubFiles(
        weights=job.folder / WEIGHTS,
        texts={name: text.encode("utf-8", "replace") for name, text in texts.items()},
    )


def names_machine(text: str) -> bool:
    """Return whether `text` holds an absolute path, the home folder or something like a token."""
    home = str(Path.home())
    return _MACHINE_PATH.search(text) is not None or (len(home) > 1 and home in text) or scrub(text) != text


def sanitised(value: Any, replacements: Mapping[str, str | None]) -> Any:
    """Return a copy of the JSON `value` without anything about this machine.

    A text that is a key of `replacements` is replaced by its value there. A text that names the machine is
    left out of an object together with its key, and becomes `REMOVED` in a list; so are keys that do.
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
        raise UploadFailed(f"{path} does not hold a JSON object")
    return value


def _json_text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


_CARD_WARNING = """\
> **Made for research on protections against style mimicry.** This adapter was trained to measure whether a
> protection stops a model from learning an artist's style, and whether a countermeasure undoes it. It is not
> meant to imitate an artist, and works made with it must not be passed off as the artist's own. Keep it
> private."""


def model_card(job: Upload, run: dict[str, Any], base_model: str | None) -> str:
    """Return the model card, YAML front matter first.

    `run` is the sanitised training_run.json, any of whose keys may be missing; `base_model` is a Hub id, if
    there is one. Equal arguments give equal text, so that a second upload does not make a second commit.
    """
    options = run.get("options")
    options = options if isinstance(options, dict) else {}
    prompt = options.get("instance_prompt")
    sections = [
        f"---\n{_front_matter(base_model, prompt)}\n---",
        f"# {_plain(job.repository.rpartition('/')[2])}",
        _CARD_WARNING,
        "## Condition",
        _table(
            {
                "artist": job.artist,
                "protection": job.protection,
                "countermeasure": job.countermeasure,
                "images": len(run["images"]) if isinstance(run.get("images"), list) else None,
                "unpaired": "; ".join(TrainingRun(run).unpaired) or None,
            }
        ),
        "## Recipe",
        f"A DreamBooth LoRA of {_code(base_model) if base_model else 'a base model that is not on the Hub'}"
        + (f", called by the prompt {_code(prompt)}." if prompt else "."),
        _table(options),
        _table({"recipe hash": run.get("recipe_hash"), "trained": run.get("finished_at")}),
        "Images, versions and hashes are in `training_run.json`.",
        "## Licence",
        _licence(base_model),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(base_model: str | None, prompt: Any) -> str:
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {}
    if base_model:
        fields |= {"base_model": base_model, "base_model_relation": "adapter"}
    if _is_stability(base_model):
        fields |= {
            "license": "other",
            "license_name": "stabilityai-ai-community",
            "license_link": _licence_link(base_model),
        }
    if isinstance(prompt, str):
        fields["instance_prompt"] = prompt
    return ModelCardData(library_name="diffusers", tags=["lora", "dreambooth"], **fields).to_yaml()


def _licence(base_model: str | None) -> str:
    if _is_stability(base_model):
        return (
            "The base model is under the Stability AI Community License, which also covers this adapter: "
            f"{_licence_link(base_model)}"
        )
    return "The licence of the base model also covers this adapter."


def _is_stability(base_model: str | None) -> bool:
    # Their older models are under other licences.
    return base_model is not None and base_model.startswith("stabilityai/stable-diffusion-3")


def _licence_link(base_model: str | None) -> str:
    return f"https://huggingface.co/{base_model}/blob/main/LICENSE.md"


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {_plain(key)} | {_code(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{_plain(text).replace('`', chr(39)).replace('|', '/')}`"


def _plain(text: str) -> str:
    # One line: a line break in an artist's name must not begin a new block of the page.
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
