"""Where the wall time of one tiny artist goes: launcher, imports, encoding, training, saving.

    .venv/bin/python -m benchmarks.tiny_artist [--demo data/demo] [--steps 20] [--output FILE]

Runs the wrapper's exact command on the demo study (`make demo`, or `mimicry-demo DIR`) and notes when the
trainer prints which line. The first run warms the disk and is not counted; figures are medians in seconds.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import add_output_option, report
from mimicry.common.study_tree import StudyTree
from mimicry.tuning.config import TuningConfig
from mimicry.tuning.hf_diffusers.launch import TrainScript
from mimicry.tuning.hf_diffusers.one_artist import ArtistJob

# The first words of the line that ends each part.
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
    asked = parser.parse_args()
    tree = StudyTree(asked.demo / "style_mimicry")
    artist = tree.artists(tree.original_art)[0]
    config = TuningConfig(
        pretrained_model_name_or_path=str(asked.demo / "tiny_sd3"), resolution=64, max_train_steps=asked.steps
    )
    images = tree.images_of(tree.original_art, artist)
    runs = [_timed_run(config, images) for _ in range(asked.runs + 1)][1:]
    figures = {f"{part} [s]": statistics.median(run[part] for run in runs) for part in runs[0]}
    report("tiny_artist", figures, asked.output, runs=asked.runs, steps=asked.steps)


def _timed_run(config: TuningConfig, images: Path) -> dict[str, float]:
    """Train once and return the seconds of each part, of what is left at the end, and in all."""
    with tempfile.TemporaryDirectory() as folder:
        job = ArtistJob(
            config=config,
            input_dir=images,
            output_dir=Path(folder) / "adapter",
            script=TrainScript.own(),
            stall_seconds=600,
        )
        begin = time.perf_counter()
        process = subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Prompt embeddings are cached there, so that each run has to make them.
            env=os.environ | {"PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": folder},
        )
        assert process.stdout is not None
        printed = [(line, time.perf_counter()) for line in process.stdout]
        if process.wait() != 0:
            raise SystemExit("".join(line for line, _ in printed))
        end = time.perf_counter()
    seconds, last = {}, begin
    for part, words in _PARTS:
        at = next(
            when for line, when in printed if line.startswith(words.format(steps=config.max_train_steps))
        )
        seconds[part], last = at - last, at
    return {**seconds, "exit": end - last, "in all": end - begin}


if __name__ == "__main__":
    main()
