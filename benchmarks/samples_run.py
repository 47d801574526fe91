"""Measure time and memory of `mimicry samples`, which draws with an adapter of a pipeline of random weights.

    .venv/bin/python -m benchmarks.samples_run [--sizes large] [--memory-limit-gib 15.3] [--output FILE]

Takes the adapter that `benchmarks.whole_run --work DIR` left in DIR, else trains one for a single step. Then
it draws pictures in few steps. What is drawn is noise; a call that succeeds shows that drawing fits.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.pipeline_sizes import SIZES
from benchmarks.whole_run import Run, RunFailed, Training, add_pipeline_options, pipeline_of
from benchmarks.worker import Deadline
from tools.results_file import Results, add_output_option

# The program says nothing between its table and the end.
_PARTS = {"drawn by": "plan, then drawing"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pipeline_options(parser)
    parser.add_argument("--steps", type=int, default=4, help="Steps from noise to image.")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--memory-limit-gib", type=float, default=15.3)
    add_output_option(parser)
    options = parser.parse_args()
    deadline = Deadline(options.seconds)
    facts = {name: vars(options)[name] for name in ("sizes", "steps", "pictures", "memory_limit_gib")}
    results = Results("samples_run", options.output, **facts)
    with tempfile.TemporaryDirectory() as name:
        try:
            training = _trained(options, Path(name), deadline)
            results.add(_draw(options, training, Path(name), deadline))
        except RunFailed as failure:
            results.fail("mimicry samples", str(failure))
    return 1 if results.problems else 0


def _trained(options: argparse.Namespace, folder: Path, deadline: Deadline) -> Training:
    """Return a training that is done, by `whole_run` or now."""
    pipeline = pipeline_of(options, folder)
    resolution = SIZES[options.sizes].resolution
    for place in sorted(options.work.glob("limit_*")) if options.work else ():
        training = Training(pipeline, place, resolution, steps=1, limit_gib=0)
        if training.is_done:
            return training
    training = Training(pipeline, folder, resolution, steps=1, limit_gib=options.memory_limit_gib)
    training.run(deadline.left())
    return training


def _draw(
    options: argparse.Namespace, training: Training, folder: Path, deadline: Deadline
) -> dict[str, float]:
    run = Run(
        [
            *(sys.executable, "-m", "benchmarks.limited", str(options.memory_limit_gib)),
            *("mimicry.cli", "samples", f"--data-root={training.tree.data_root}", "--overwrite"),
            *("--prompt=a painting", *(f"--seed={seed}" for seed in range(options.pictures))),
            *(f"--steps={options.steps}", f"--prompt-cache-dir={folder / 'prompts'}"),
        ],
        _PARTS,
        deadline.left(),
    )
    return run.figures()


if __name__ == "__main__":
    raise SystemExit(main())
