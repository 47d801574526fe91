"""A base model as far as the programs without torch look at it: configs, listings, and a few bytes."""

import json
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40

_MODELS = {
    "transformer": {
        "patch_size": 2,
        "pos_embed_max_size": 48,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
    },
    "vae": {"block_out_channels": [8, 8, 8, 8]},
    "text_encoder": {},
    "text_encoder_2": {},
    "text_encoder_3": {},
}
_OTHERS = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")


def write_json_file(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_model(folder: Path, *, t5: bool = True) -> Path:
    """Make a model in the diffusers layout: multiples of 16 up to 768 pixels."""
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline", "image_encoder": [None, None]}
    for name in [*_MODELS, *_OTHERS]:
        if not t5 and name.endswith("_3"):
            index[name] = [None, None]
            continue
        index[name] = ["library", "Class"]
        if name in _MODELS:
            write_json_file(folder / name / "config.json", _MODELS[name])
            (folder / name / "model.safetensors").write_bytes(name.encode())
        else:
            write_json_file(folder / name / f"{name}_config.json", {})
    write_json_file(folder / "model_index.json", index)
    return folder


def make_cached_model(
    cache_dir: Path, name: str = "lab/model", commit: str = COMMIT, ref: str = "main"
) -> Path:
    """Make the model in the layout of huggingface_hub's cache; return the folder of its snapshot."""
    folder = cache_dir / f"models--{name.replace('/', '--')}"
    (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return make_model(folder / "snapshots" / commit)
