"""The README.md of an adapter on the Hub: what it was made from and how, and what not to use it for."""

import json
from typing import Any

from mimicry.tuning.adapters import TrainingRun
from mimicry.tuning.hub.upload import Upload

_WARNING = """\
> **Made for research on protections against style mimicry.** This adapter was trained to measure whether a
> protection stops a model from learning an artist's style, and whether a countermeasure undoes it. It is not
> meant to imitate an artist, and works made with it must not be passed off as the artist's own. Keep it
> private."""


def model_card(job: Upload, run: dict[str, Any], base_model: str | None) -> str:
    """Return the model card, YAML front matter first.

    `run` is the sanitised training_run.json, any of whose keys may be missing; `base_model` is a Hub id, or
    None when the base model has none. Equal arguments give equal text, so that uploading the same adapter
    twice does not make a second commit.
    """
    options = run.get("options")
    options = options if isinstance(options, dict) else {}
    prompt = options.get("instance_prompt")
    sections = [
        f"---\n{_front_matter(base_model, prompt)}\n---",
        f"# {_plain(job.repository.rpartition('/')[2])}",
        _WARNING,
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
