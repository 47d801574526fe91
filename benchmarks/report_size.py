"""Measure `mimicry report` on a study of full size, whose records are made up.

    .venv/bin/python -m benchmarks.report_size [--artists 26] [--seeds 3] [--side 256] [--keep DIR]

Writes a study of artists under 21 conditions: pictures drawn by chance, adapters that nobody trained, and
evaluation losses from a generator with effects that stand below. It says nothing about any protection, and
its folder and its page are called made up. Then it times the report, once with all pictures to make and once
with none, and prints sizes. Times are in seconds, sizes in MB. How long a browser takes to open the page is
measured by `tests/report/test_browser.py`, on a page that it is given with --keep:

    MIMICRY_REPORT_PAGE=DIR/report/index.html .venv/bin/python -m pytest -m browser tests/report
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.full_study import CONDITIONS, image_root
from mimicry.common.processes import run_command
from mimicry.report.make_report import report as report_command
from mimicry.study.drawn_images import save_sample
from mimicry.study.images import ImageFolder
from mimicry.study.tree import NONE, AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.adapters.recipe import OWN_TRAINER, recipe, recipe_hash
from mimicry.tuning.options.click_options import DEFAULT_STACK
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import add_output_option, report

FOLDER = "made-up-study"
TITLE = "MADE UP: no adapter of this study was trained, and no figure means anything"
_STYLES = ("impressionism", "cubism", "baroque", "ukiyo-e")
_STEMS = tuple(f"{number:02d}_picture" for number in range(20))
_PROMPTS = ("a painting in the style of sks", "a painting of a boat in the style of sks")
_STEPS = 500
# Mean effect of each protection on the loss, and what each countermeasure leaves of it.
_EFFECTS = {"glaze": 0.012, "mist": 0.02, "anti_dreambooth": 0.016, "style_guard": 0.001}
_LEFT = {NONE: 1.0, "diff_pure": 0.35, "gaussian_noise": 0.9, "noisy_upscaling": 0.1, "impress": 0.6}
_BETWEEN_ARTISTS, _BETWEEN_SEEDS = 0.008, 0.002


class Inventor:
    """Writes the study; all of it follows from one seed."""

    def __init__(self, tree: StudyTree, side: int) -> None:
        self.tree, self.side = tree, side
        self.generator = np.random.Generator(np.random.Philox(2026))
        self.weights = tree.data_root / "weights.safetensors"
        values = self.generator.normal(size=(4, 6)).astype(np.float32)
        save_file(
            {
                f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight": factor
                for side, factor in (("A", values), ("B", np.ascontiguousarray(values.T)))
            },
            self.weights,
        )

    def picture(self, side: int) -> NDArray[np.uint8]:
        """Return large soft spots of colour, of shape (side, side, 3)."""
        spots = self.generator.integers(0, 255, size=(6, 6, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC))

    def images(self, artist: Artist) -> None:
        """Write the images of an artist in all conditions."""
        for stem in _STEMS:
            original = self.picture(192)
            for condition in CONDITIONS:
                folder = self.tree.images_of(image_root(self.tree, condition), artist)
                folder.mkdir(parents=True, exist_ok=True)
                changed = original.astype(np.int16)
                if condition != Condition():
                    changed = changed + self.generator.integers(-6, 7, size=changed.shape)
                Image.fromarray(changed.clip(0, 255).astype(np.uint8)).save(
                    folder / f"{stem}.jpg", quality=90
                )

    def adapter(self, adapter: AdapterId, seed: int, end: float) -> None:
        """Write one adapter with its record and its losses; a few are spoilt, as in any study."""
        fate = self.generator.integers(0, 120)
        if fate == 0:
            return
        config = TuningConfig(rank=4 if fate != 1 else 8, seed=seed)
        images = ImageFolder.read(
            self.tree.images_of(image_root(self.tree, adapter.condition), adapter.artist)
        )
        made = recipe(config, {"name": "made up", "revision": "0" * 40}, OWN_TRAINER)
        record: dict[str, Any] = {
            "schema": 1,
            "recipe": made,
            "recipe_hash": recipe_hash(made),
            "options": asdict(replace(config, rank=4)),
            "images": [_image_record(record, adapter) for record in images.records()],
            "unpaired": ["lacks '07_picture' of original_art"] if fate == 2 else [],
            "numerics": {"device": "cuda", "torch": "made up"},
            "status": "complete",
            "seconds": 900.0,
            "steps": _STEPS,
            "mean_loss": end,
            "final_loss": end,
            "finished_at": "2026-01-01T00:00:00+00:00",
            "eval_loss": {
                "start": 0.5,
                "end": end,
                "on": "in-sample" if fate == 3 else "held-out",
                "images": 4,
                "timesteps": [893.6, 666.7, 418.6, 146.3],
            },
        }
        folder = AdapterFolder(self.tree.adapter_dir(adapter))
        folder.path.mkdir(parents=True)
        saved = folder.path / "saved.safetensors"
        saved.write_bytes(self.weights.read_bytes())
        folder.publish(saved, record, "made up")
        saved.unlink()
        if adapter.variant is None:
            folder.metrics.write_text(self.metrics(end), "utf-8")

    def metrics(self, end: float) -> str:
        losses = end + 0.3 * np.exp(-np.arange(_STEPS) / 90) + self.generator.normal(0, 0.04, _STEPS)
        lines = [{"step": 0, "eval_loss": 0.5}]
        lines += [{"step": step + 1, "loss": float(loss), "lr": 1e-4} for step, loss in enumerate(losses)]
        return "".join(json.dumps(line) + "\n" for line in [*lines, {"step": _STEPS, "eval_loss": end}])

    def samples(self, folder: Path, facts: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for prompt in _PROMPTS:
            for seed in (0, 1):
                settings = {**facts, "prompt": prompt, "seed": seed, "steps": 28, "guidance": 4.5}
                drawn = Image.fromarray(self.picture(self.side))
                save_sample(folder / f"{prompt.replace(' ', '_')}_{seed}.png", drawn, settings)


def _image_record(record: Any, adapter: AdapterId) -> dict[str, Any]:
    is_original = adapter.condition == Condition()
    return {**record, "psnr": None if is_original else 36.0, "linf": None if is_original else 6}


def write_study(data_root: Path, artist_count: int, seed_count: int, side: int) -> StudyTree:
    """Write the made-up study and return its tree."""
    tree = StudyTree(data_root)
    data_root.mkdir(parents=True)
    inventor = Inventor(tree, side)
    inventor.samples(tree.samples_of_base(DEFAULT_STACK), {"adapter": None})
    for number in range(artist_count):
        artist = Artist("made_up", _STYLES[number % len(_STYLES)], f"Invented_{number + 1:02d}")
        inventor.images(artist)
        base = 0.3 + 0.03 * inventor.generator.normal()
        for condition in CONDITIONS:
            effect = _EFFECTS.get(condition.protection, 0.0) + _BETWEEN_ARTISTS * inventor.generator.normal()
            effect = 0.0 if condition == Condition() else effect * _LEFT[condition.countermeasure]
            for seed in range(42, 42 + seed_count):
                adapter = AdapterId(DEFAULT_STACK, condition, artist, None if seed == 42 else f"seed-{seed}")
                inventor.adapter(adapter, seed, base + effect + _BETWEEN_SEEDS * inventor.generator.normal())
            plain = AdapterId(DEFAULT_STACK, condition, artist)
            sha256 = AdapterFolder(tree.adapter_dir(plain)).readable_run.weights_sha256
            inventor.samples(
                tree.samples_of(plain),
                {"adapter": sha256, "condition": str(condition), "artist": str(artist)},
            )
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artists", type=int, default=26)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=256, help="of a sample, in pixels")
    parser.add_argument("--keep", type=Path, help="a new folder for study and report")
    add_output_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        begin = time.perf_counter()
        tree = write_study(root / FOLDER, options.artists, options.seeds, options.side)
        figures: dict[str, Any] = {"study_written": round(time.perf_counter() - begin, 1)}
        for name in ("first_build", "second_build"):
            begin = time.perf_counter()
            words = [f"--data-root={tree.data_root}", f"--output={root / 'report'}", f"--title={TITLE}"]
            if run_command(report_command, words) != 0:
                raise SystemExit(1)
            figures[name] = round(time.perf_counter() - begin, 1)
        files = [path for path in (root / "report").rglob("*") if path.is_file()]
        figures |= {
            "adapters": len(tree.adapters()),
            "page_MB": round((root / "report" / "index.html").stat().st_size / 1e6, 2),
            "pictures": sum(path.suffix == ".webp" for path in files),
            "folder_MB": round(sum(path.stat().st_size for path in files) / 1e6, 1),
        }
    facts = {"artists": options.artists, "seeds": options.seeds, "side": options.side}
    report("report_size", figures, options.output, **facts)


if __name__ == "__main__":
    main()
