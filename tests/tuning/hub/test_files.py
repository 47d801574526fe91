"""What goes to the Hub, and what must not."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mimicry.common.errors import AdapterBroken, UploadFailed
from mimicry.tuning.hub.files import REMOVED, hub_files, model_card, names_machine, sanitised
from mimicry.tuning.hub.upload import Upload

SD35 = "stabilityai/stable-diffusion-3.5-large"


def write_adapter(folder: Path, base_model: str = SD35, metadata: dict[str, str] | None = None) -> Path:
    """Write an adapter of one tensor into `folder`, with JSON files full of this machine's secrets."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": metadata or {"format": "pt"}, "transformer.x": tensor}).encode()
    weights = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 0.5, -0.5)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(weights)
    local = base_model.startswith("/")
    run = {
        "options": {
            "rank": 16,
            "learning_rate": 1e-4,
            "instance_prompt": "a painting in the style of sks",
            "pretrained_model_name_or_path": base_model,
            "cache_dir": "/home/jane doe/cache",
            "revision": None,
        },
        "recipe_hash": "ab" * 32,
        "base_model": {"name": None if local else base_model, "revision": None if local else "0" * 40},
        "images": [{"name": "l'été 1.jpg", "size": 100, "sha256": "cd" * 32}],
        "versions": {"torch": "2.13.0+cpu"},
        "command": ["python", "--output_dir=/home/jane doe/out"],
        "paths": {"base_model": base_model},
        "host": {"name": "janes-box"},
        "warnings": ["trained without its sister in /home/jane doe/data", "19 images only"],
        "finished_at": "2026-08-01T00:00:00+00:00",
    }
    (folder / "training_run.json").write_text(json.dumps(run))
    config = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": base_model}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def job(folder: Path, **changes: Any) -> Upload:
    """Return an upload of the adapter in `folder`."""
    values: dict[str, Any] = {
        "folder": folder,
        "repository": "sd35-lora-mist-none-Anna",
        "protection": "mist",
        "countermeasure": "none",
        "artist": "Anna",
    }
    return Upload(**values | changes)


def front_matter(card: str) -> dict[str, Any]:
    """Return the front matter of a model card, as the Hub's own client reads it."""
    fields: dict[str, Any] = ModelCard(card, ignore_metadata_errors=False).data.to_dict()  # type: ignore[no-untyped-call]
    return fields


def test_json_files_are_sent_without_anything_about_this_machine(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    before = (folder / "training_run.json").read_bytes()
    texts = hub_files(job(folder)).texts
    assert sorted(texts) == ["README.md", "adapter_config.json", "training_run.json"]
    for text in texts.values():
        assert not any(
            secret in text for secret in (b"jane", b"/home", b"output_dir", str(tmp_path).encode())
        )
    run = json.loads(texts["training_run.json"])
    assert run["options"] == {
        "rank": 16,
        "learning_rate": 1e-4,
        "instance_prompt": "a painting in the style of sks",
        "pretrained_model_name_or_path": SD35,
        "revision": None,
    }
    assert run["images"][0]["name"] == "l'été 1.jpg"
    assert run["warnings"] == [REMOVED, "19 images only"]
    assert not {"command", "paths", "host"} & set(run)
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == SD35
    assert (folder / "training_run.json").read_bytes() == before


@pytest.mark.parametrize("base_model_id", [None, "lab/tiny-sd3"])
def test_local_base_model_is_sent_as_its_id_or_left_out(tmp_path: Path, base_model_id: str | None) -> None:
    folder = write_adapter(tmp_path / "adapter", base_model="/models/jane/tiny")
    texts = hub_files(job(folder, base_model_id=base_model_id)).texts
    assert not any(b"/models" in text for text in texts.values())
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == base_model_id
    run = json.loads(texts["training_run.json"])
    assert run["options"]["pretrained_model_name_or_path"] == base_model_id
    assert front_matter(texts["README.md"].decode()).get("base_model") == base_model_id


def test_local_folder_that_looks_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    folder = write_adapter(tmp_path / "adapter", base_model="models/tiny")
    monkeypatch.chdir(tmp_path)
    assert json.loads(hub_files(job(folder)).texts["adapter_config.json"])["base_model_name_or_path"] is None


def test_missing_keys_are_allowed(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "training_run.json").write_text("{}")
    card = hub_files(job(folder)).texts["README.md"].decode()
    assert front_matter(card)["base_model"] == SD35


def test_base_model_id_must_be_valid(tmp_path: Path) -> None:
    with pytest.raises(UploadFailed, match="--base-model-id"):
        hub_files(job(write_adapter(tmp_path / "adapter"), base_model_id="/models/tiny"))


@pytest.mark.parametrize("text", ["/home/jane/base", '{"base": "/models/base"}', "hf_" + "Ab1" * 11])
def test_header_of_the_weights_is_searched(tmp_path: Path, text: str) -> None:
    folder = write_adapter(tmp_path / "adapter", metadata={"lora_adapter_metadata": text})
    with pytest.raises(UploadFailed, match="lora_adapter_metadata"):
        hub_files(job(folder))


@pytest.mark.parametrize("name", ["training_run.json", "adapter_config.json"])
@pytest.mark.parametrize("content", [None, "{", "[]", "[" * 100_000], ids=["none", "torn", "list", "deep"])
def test_broken_json_is_refused_by_name(tmp_path: Path, name: str, content: str | None) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UploadFailed, match=name):
        hub_files(job(folder))


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"short")
    with pytest.raises(AdapterBroken):
        hub_files(job(folder))


@pytest.mark.parametrize(
    "text",
    [
        "/data",
        "cannot open /data/x.jpg",
        "--dir=/data/x",
        "PATH=bin:/usr/bin",
        "('/data/x')",
        "~/study",
        "~jane/study",
        "-I/home/jane",
        "see file:///data/x",
        r"C:\Users\jane",
        "D:/study",
        r"\\server\share",
        "token hf_" + "x1" * 17,
    ],
)
def test_texts_that_name_the_machine(text: str) -> None:
    assert names_machine(text)


@pytest.mark.parametrize(
    "text",
    [
        "a painting in the style of sks",
        SD35,
        "https://huggingface.co/stabilityai/sd3/blob/main/LICENSE.md",
        "oil / canvas, 1/2, and/or",
        "2026-08-01T00:00:00+00:00",
        "./relative/path",
        "file: no. 3.jpg",
        "hf_diffusers/none/none/historical/impressionism/Claude_Monet",
        "transformer.transformer_blocks.0.attn.to_q",
        "",
    ],
)
def test_texts_that_do_not_name_the_machine(text: str) -> None:
    assert not names_machine(text)


def test_home_folder_is_found_inside_other_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/space/jane")
    assert names_machine("prefix/space/jane/x")


def test_keys_that_name_the_machine_are_left_out() -> None:
    assert sanitised({"/data/a.jpg": 1, "a.jpg": [{"user": "jane", "size": 2}]}, {}) == {
        "a.jpg": [{"size": 2}]
    }


def test_card_of_the_study(tmp_path: Path) -> None:
    card = hub_files(job(write_adapter(tmp_path / "adapter"))).texts["README.md"].decode()
    assert front_matter(card) == {
        "base_model": SD35,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "tags": ["lora", "dreambooth"],
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": f"https://huggingface.co/{SD35}/blob/main/LICENSE.md",
        "instance_prompt": "a painting in the style of sks",
    }
    for words in (
        "research on protections",
        "not\n> meant to imitate",
        "| protection | `mist` |",
        "| rank | `16` |",
    ):
        assert words in card


@pytest.mark.parametrize(
    "words", ['a "b": {c}', "line\nbreak\n---\nlicense: mit", "é\x85\u2028x\x00", "王 🎨", "- #"]
)
def test_hostile_words_stay_words(tmp_path: Path, words: str) -> None:
    run = {"options": {"instance_prompt": words}}
    card = model_card(job(tmp_path, artist=words), run, None)
    fields = front_matter(card)
    assert fields["instance_prompt"] == words
    assert "license" not in fields
    rows = [line for line in card.splitlines() if line.startswith("| artist |")]
    assert len(rows) == 1
    assert rows[0].endswith("` |")


def test_an_adapter_that_was_trained_unpaired_says_so(tmp_path: Path) -> None:
    marks = ["lacks '03_hills' of original_art"]
    card = model_card(job(tmp_path), {"unpaired": marks}, None)
    assert "| unpaired | `lacks '03_hills' of original_art` |" in card
    assert "| unpaired |" not in model_card(job(tmp_path), {"unpaired": []}, None)
