"""Measure the time from the start of the process to the first step, for the first artist and the second.

    .venv/bin/python -m benchmarks.cold_start [--demo data/demo] [--steps 20] [--output FILE]

Runs the wrapper's exact command on two artists of the demo study (`make demo`, or `mimicry demo DIR`), each
with its original art to evaluate on. The first one finds no prompt embeddings on disk, the second one finds
those of the first. A first run, which does not count, fills the disk cache. Figures are medians in seconds,
and in MB for the peak host memory of a process.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.timed_run import timed_run
from mimicry.study.tree import StudyTree
from mimicry.tuning.options.config import TuningConfig
from tools.results_file import add_output_option, report

# Up to this number of steps, the trainer prints a line for each.
_MOST_STEPS = 39
# Each part ends with the line that starts with these words.
_MARKS = (
    ("to the trainer's first line", "mimicry "),
    ("to the prompt embeddings", "prompt embeddings "),
    ("to the first step", "step 1/"),
    ("to the adapter", "saved "),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("data/demo"))
    parser.add_argument("--steps", type=int, choices=range(1, _MOST_STEPS + 1), default=20, metavar="COUNT")
    parser.add_argument("--runs", type=int, default=5)
    add_output_option(parser)
    options = parser.parse_args()
    tree = StudyTree(options.demo / "style_mimicry")
    first, second = (
        tree.images_of(tree.original_art, artist) for artist in tree.artists(tree.original_art)[:2]
    )
    config = TuningConfig(
        pretrained_model_name_or_path=str(options.demo / "tiny_sd3"),
        resolution=64,
        max_train_steps=options.steps,
    )
    load_before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {}
    # The first run fills the disk cache and does not count.
    for run in range(options.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            for images, which in ((first, "first artist, cache cold"), (second, "second artist, cache warm")):
                for part, value in _run(config, images, Path(folder), which).items():
                    if run:
                        seconds.setdefault(f"{which}: {part}", []).append(value)
    figures = {what: statistics.median(values) for what, values in seconds.items()}
    report(
        "cold_start",
        figures,
        options.output,
        runs=options.runs,
        steps=options.steps,
        # Other programs that ran at the same time.
        load_average_before=round(load_before, 2),
    )


def _run(config: TuningConfig, images: Path, folder: Path, which: str) -> dict[str, float]:
    """Train once; return the seconds from the start to each mark, and the peak host memory in MB."""
    run = timed_run(config, images, folder, evaluate=True)
    expected = "from the cache" if which.endswith("warm") else "cached"
    if not any(line.startswith(f"prompt embeddings {expected}") for line, _ in run.lines):
        raise SystemExit(f"{which}: no 'prompt embeddings {expected}' in its output")
    figures = {f"{part} [s]": run.when(words) for part, words in _MARKS}
    return {**figures, "to the end [s]": run.seconds, "peak of host memory [MB]": run.peak_bytes / 1e6}


if __name__ == "__main__":
    main()
