"""Measure where the time of one tiny artist goes (launcher, imports, encoding, training), and a pilot's.

    .venv/bin/python -m benchmarks.tiny_artist [--demo data/demo] [--steps 20] [--output FILE]

Runs the wrapper's exact command on the demo study (`make demo`, or `mimicry demo DIR`) and notes when the
trainer prints which line; then times `apply_tuning --pilot`, three artists, on a copy of the study's original
art. The first run of each fills the disk cache and does not count; figures are medians in seconds.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timed_run import timed_run
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters import WEIGHTS
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import add_output_option, report

# Each part ends with the line that starts with these words.
_PARTS = (
    ("launcher", "mimicry "),
    ("imports", "encoding the prompt"),
    ("encode", "reading the transformer"),
    ("load", "training "),
    ("train", "step {steps}/"),
    ("save", "saved "),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("data/demo"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=5)
    add_output_option(parser)
    options = parser.parse_args()
    tree = StudyTree(options.demo / "style_mimicry")
    artist = tree.artists(tree.original_art)[0]
    config = TuningConfig(
        pretrained_model_name_or_path=str(options.demo / "tiny_sd3"),
        resolution=64,
        max_train_steps=options.steps,
    )
    images = tree.images_of(tree.original_art, artist)
    runs = [_parts(config, images) for _ in range(options.runs + 1)][1:]
    figures = {f"{part} [s]": statistics.median(run[part] for run in runs) for part in runs[0]}
    pilots = [_pilot_seconds(config, tree) for _ in range(options.runs + 1)][1:]
    figures["apply_tuning --pilot, three artists [s]"] = statistics.median(pilots)
    report("tiny_artist", figures, options.output, runs=options.runs, steps=options.steps)


def _parts(config: TuningConfig, images: Path) -> dict[str, float]:
    """Train once and return the seconds of each part, of the exit, and of all."""
    with tempfile.TemporaryDirectory() as folder:
        run = timed_run(config, images, Path(folder), evaluate=False)
    seconds, last = {}, 0.0
    for part, words in _PARTS:
        at = run.when(words.format(steps=config.max_train_steps))
        seconds[part], last = at - last, at
    return {**seconds, "exit": run.seconds - last, "in all": run.seconds}


def _pilot_seconds(config: TuningConfig, tree: StudyTree) -> float:
    """Train the pilot with apply_tuning and return the seconds.

    Raises:
        SystemExit: not all three artists were trained; the message is the output.
    """
    with tempfile.TemporaryDirectory() as folder:
        study = StudyTree(Path(folder))
        shutil.copytree(tree.original_art, study.original_art)
        command = [
            *(sys.executable, "-m", "mimicry.tuning.apply_tuning", "--pilot", "--no-push-to-hub"),
            *("--data-root", folder, "--resolution", str(config.resolution)),
            *("--pretrained-model-name-or-path", config.pretrained_model_name_or_path),
            *("--max-train-steps", str(config.max_train_steps)),
        ]
        begin = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"XDG_CACHE_HOME": folder}
        )
        seconds = time.perf_counter() - begin
        adapters = list(study.data_root.rglob(WEIGHTS))
        if done.returncode != 0 or len(adapters) != 3:
            raise SystemExit(done.stdout + done.stderr)
    return seconds


if __name__ == "__main__":
    main()
