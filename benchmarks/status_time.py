"""Measure how long `mimicry status` takes for a study of 546, of 1638 and of about 10,000 cells.

    .venv/bin/python -m benchmarks.status_time [--runs 5] [--artists 160] [--output FILE]

Writes a study of 21 conditions into a temporary folder: images, weights with as many tensors as an adapter of
SD3.5 Large has, of a few bytes each, and records of the usual size. Every adapter is complete. The plain
series and two variants of other seeds are there; of the largest study only the number of artists is another.
Reports the median of several runs in seconds, after one that is not counted.
"""

import argparse
import json
import os
import struct
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.full_study import CONDITIONS, image_root, made_up_artists
from benchmarks.timed_run import median_times
from mimicry.common.files import sha256_file
from mimicry.study.images import ImageFolder
from mimicry.study.tree import AdapterId, StudyTree
from mimicry.tuning.adapters.folder import AdapterFolder
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe, recipe_hash
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import add_output_option, report

_ARTISTS = 26
_IMAGES = 20
_STACK = "hf_diffusers"
_SEEDS = {None: 42, "seed-43": 43, "seed-44": 44}
# The modules of SD3.5 Large that get a LoRA.
_BLOCKS = 38
_PROJECTIONS = (
    *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
    *("to_k", "to_out.0", "to_q", "to_v"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--artists", type=int, default=160, help="Artists of the largest study.")
    add_output_option(parser)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    figures: dict[str, float] = {}
    for artists, variants in (
        (_ARTISTS, (None,)),
        (_ARTISTS, tuple(_SEEDS)),
        (options.artists, tuple(_SEEDS)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            tree = StudyTree(Path(folder) / "style_mimicry")
            count = _write_study(tree, artists, variants)
            words = ["status", "--data-root", str(tree.data_root)]
            figures |= median_times(
                f"mimicry status, {count} cells", [sys.executable, "-m", "mimicry.cli", *words], options.runs
            )
    report("status_time", figures, options.output, runs=options.runs, load_average_before=load)


def _write_study(tree: StudyTree, artist_count: int, variants: tuple[str | None, ...]) -> int:
    """Write images and complete adapters of all conditions; return how many adapters there are."""
    artists = made_up_artists(artist_count)
    weights = _weights()
    for condition in CONDITIONS:
        root = image_root(tree, condition)
        for artist in artists:
            images = tree.images_of(root, artist)
            images.mkdir(parents=True)
            for number in range(_IMAGES):
                (images / f"{number:02}_painting.png").write_bytes(b"%03d" % (number % 10))
            described = _described(ImageFolder.read(images))
            for variant in variants:
                adapter = AdapterId(_STACK, condition, artist, variant)
                folder = AdapterFolder(tree.adapter_dir(adapter))
                folder.path.mkdir(parents=True)
                folder.weights.write_bytes(weights)
                folder.record.write_text(json.dumps(_record(folder, variant, described), indent=2))
                folder.log.write_text("trained\n")
                folder.config.write_text("{}")
                folder.metrics.write_text('{"step": 500, "loss": 0.5}\n')
    return len(CONDITIONS) * len(artists) * len(variants)


def _weights() -> bytes:
    """Return an adapter with the names of a real one, whose tensors have two values each."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for block in range(_BLOCKS):
        for projection in _PROJECTIONS:
            # The last block has no such layer.
            if block == _BLOCKS - 1 and projection == "to_add_out":
                continue
            for factor, shape in (("lora_A", [1, 2]), ("lora_B", [2, 1])):
                begin = 8 * (len(header) - 1)
                name = f"transformer.transformer_blocks.{block}.attn.{projection}.{factor}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, begin + 8]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1, 2) * (len(header) - 1)


def _described(images: ImageFolder) -> list[dict[str, Any]]:
    """Return what a record says of images."""
    facts = {
        "width": 1024,
        "height": 1024,
        "mode": "RGB",
        "format": "PNG",
        "profile": None,
        "caption": None,
        "paired_by": "same name",
        "psnr": 34.56,
        "linf": 16,
        "likeness": 0.9987,
        "original_fit": "as it is",
    }
    return [
        {**record, **facts, "stem": images.stem(record["name"]), "original": record["name"]}
        for record in images.records()
    ]


def _record(folder: AdapterFolder, variant: str | None, images: list[dict[str, Any]]) -> dict[str, Any]:
    config = replace(TuningConfig(), rank=1, seed=_SEEDS[variant])
    made_by = recipe(config, {"name": "lab/model", "revision": "0" * 40}, OWN_TRAINER)
    return {
        "schema": 1,
        "status": "complete",
        "recipe": made_by,
        "recipe_hash": recipe_hash(made_by),
        "options": asdict(config),
        "images": images,
        "numerics": {f"library_{number}": f"{number}.0.1" for number in range(20)},
        "stage_seconds": {f"stage_{number}": 1.25 for number in range(10)},
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:24:05+00:00",
        "seconds": 1200.0,
        "steps": config.max_train_steps,
        "mean_loss": 0.25,
        "eval_loss": {"start": 0.61, "end": 0.52, "on": "original art", "images": len(images)},
        "paths": {"output_dir": str(folder.path)},
        "weights": {"sha256": sha256_file(folder.weights)},
    }


if __name__ == "__main__":
    main()
