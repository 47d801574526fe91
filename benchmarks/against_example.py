"""Train the same artist with this trainer and with a copy of the diffusers example, in turn.

    .venv/bin/python -m benchmarks.against_example --example PATH [--demo data/demo] [--output FILE]

PATH is diffusers' examples/dreambooth/train_dreambooth_lora_sd3.py, unmodified, which is not part of this
project. It needs torchvision; --example-python names an interpreter that has it. Both are started by the
same `accelerate launch` command with the same options, on the same images and base model. Where the CLIPs of
the base model read fewer than the 77 tokens that the example counts on, both train a copy whose CLIPs do.
The example caches latents with --mixed-precision no only: in other precisions it fails with them.

Prints medians, with minimum and maximum, of wall and CPU seconds of the whole process tree, launcher
included; of the seconds of a step, from the first to the last; and of peak memory. What the adapters have
learned is measured by `benchmarks.judge`, which is neither of the two. The first run of each fills the disk
cache and does not count. This trainer finds no prompt embeddings on disk.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_watch import GpuWatch
from benchmarks.judge import Judge, tensors_of
from benchmarks.timed_run import TimedRun, timed_command
from benchmarks.wide_prompts import with_wide_prompts
from mimicry.common.errors import UsageError, run_reporting_errors
from mimicry.common.files import sha256_file
from mimicry.study.tree import StudyTree
from mimicry.tuning.adapters import WEIGHTS
from mimicry.tuning.hf_diffusers.launch import ForeignScript, TrainScript, launch_words
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TrainingInputs
from tools.results_file import add_output_option, report

OURS, EXAMPLE = "ours", "example"
_SHOWN_LINES = 20
# Ours prints "step 3/20, ..."; the example's progress bar is "Steps:  15%|...| 3/20 [...".
_STEP = re.compile(r"(?:step |Steps: .*\| *)(\d+)/\d+\b")
_LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "peft", "accelerate")

Figures = dict[str, list[float]]


def main() -> int:
    options = _parser().parse_args()
    return run_reporting_errors(lambda: _compare(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--example", type=Path, required=True, metavar="PATH")
    parser.add_argument("--example-python", type=Path, default=Path(sys.executable), metavar="PYTHON")
    parser.add_argument("--demo", type=Path, default=Path("data/demo"), help="Made by `mimicry demo DIR`.")
    parser.add_argument("--model", type=Path, help="The base model; by default that of the demo.")
    parser.add_argument("--images", type=Path, help="The artist; by default the first one of the demo.")
    parser.add_argument("--runs", type=int, default=3, choices=range(1, 101), metavar="COUNT")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--mixed-precision", choices=("no", "fp16", "bf16"), default="bf16")
    parser.add_argument("--gradient-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=42)
    add_output_option(parser)
    return parser


def _compare(options: argparse.Namespace) -> int:
    """Measure both and report; return 1 when the example failed."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="against-example-") as name:
        comparison = Comparison(options, Path(name))
        comparison.run(options.runs)
        figures = comparison.figures()
    report(
        "against_example",
        figures,
        options.output,
        runs=options.runs,
        # Other programs that ran at the same time.
        load_average_before=round(load_before, 2),
        options=comparison.config_facts,
        adapters=comparison.tensors,
        example=comparison.example_facts,
    )
    for which, tensors in comparison.tensors.items():
        print(f"tensors of the adapter, {which}: {tensors}")
    return 1 if comparison.failed else 0


class Comparison:
    """Runs of both trainers on one artist.

    Attributes:
        tensors: number and type of the tensors of an adapter, by trainer.
        failed: the example has failed, and is left out from then on.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Find artist and base model.

        Raises:
            UsageError: the example, its interpreter, the images or the base model cannot be used.
        """
        self._folder = folder
        self._python = options.example_python
        self._images = options.images or _first_artist(options.demo)
        problems = [
            f"{flag} {path} does not exist; {hint}"
            for flag, path, hint in (
                ("--example-python", self._python, "name a Python that has torchvision"),
                ("--images", self._images, "name a folder of images"),
            )
            if not path.exists()
        ]
        if problems:
            raise UsageError(*problems)
        self._example = ForeignScript.read(options.example)
        model = with_wide_prompts(options.model or options.demo / "tiny_sd3", folder / "model")
        self._config = TuningConfig(
            pretrained_model_name_or_path=str(model),
            resolution=options.resolution,
            max_train_steps=options.steps,
            rank=options.rank,
            learning_rate=options.learning_rate,
            train_batch_size=options.batch,
            gradient_accumulation_steps=options.accumulation,
            mixed_precision=options.mixed_precision,
            gradient_checkpointing=options.gradient_checkpointing,
            seed=options.seed,
        )
        self._judge = Judge(
            model,
            TrainingInputs(input_dir=self._images, output_dir=folder).read_images(0).paths,
            self._config.instance_prompt,
            resolution=options.resolution,
            tokens=self._config.max_sequence_length,
        )
        self._found: dict[str, Figures] = {OURS: {}, EXAMPLE: {}}
        self.tensors: dict[str, str] = {}
        self.failed = False

    @property
    def config_facts(self) -> dict[str, Any]:
        """What both were told, without paths."""
        facts = dataclasses.asdict(self._config)
        return {name: value for name, value in facts.items() if value is not None and "path" not in name}

    @property
    def example_facts(self) -> dict[str, Any]:
        """The example's file, and the libraries of its interpreter."""
        code = (
            "import importlib.metadata as m, json, sys\nfound = {}\n"
            "for name in sys.argv[1:]:\n    try: found[name] = m.version(name)\n"
            "    except m.PackageNotFoundError: found[name] = None\nprint(json.dumps(found))"
        )
        command = [str(self._python), "-c", code, *_LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {
            "sha256": sha256_file(self._example.path),
            "versions": json.loads(done.stdout),
            "failed": self.failed,
        }

    def run(self, count: int) -> None:
        """Train with both, in alternating order: once without counting, then `count` times."""
        for number in range(count + 1):
            for which in (OURS, EXAMPLE) if number % 2 else (EXAMPLE, OURS):
                if which == OURS or not self.failed:
                    self._train(which, number)

    def _train(self, which: str, number: int) -> None:
        output = self._folder / f"{which}_{number}"
        cache = self._folder / f"cache_{number}"
        with GpuWatch() as gpu:
            run = timed_command(self._command(which, output), {"XDG_CACHE_HOME": str(cache)})
        weights = output / WEIGHTS
        if run.code != 0 or not weights.exists():
            self._take_failure(which, run)
            return
        if number == 0:
            return
        self.tensors[which] = tensors_of(weights)
        found = {
            "wall [s]": run.seconds,
            "CPU [s]": run.cpu_seconds,
            "a step [s]": step_seconds(run),
            "peak host memory of a process [MB]": run.peak_bytes / 1e6,
            "peak GPU memory [MiB]": gpu.peak_bytes / 2**20 or None,
            "error of the velocity after": self._judge.error(output),
        }
        for what, value in found.items():
            if value is not None:
                self._found[which].setdefault(what, []).append(value)
        print(f"{which}, run {number}: {run.seconds:.1f} s", flush=True)

    def _command(self, which: str, output: Path) -> list[str]:
        inputs = TrainingInputs(input_dir=self._images, output_dir=output)
        script, config = TrainScript(), self._config
        if which == EXAMPLE:
            script = self._example
            config = dataclasses.replace(config, cache_latents=config.mixed_precision == "no")
        words = launch_words(script, script.words(config, inputs), config)
        return words if which == OURS else [str(self._python), *words[1:]]

    def _take_failure(self, which: str, run: TimedRun) -> None:
        text = "".join(f"  | {line}" for line, _ in run.lines[-_SHOWN_LINES:])
        message = f"{which} failed with exit code {run.code}; the last lines of its output:\n{text}"
        if which == OURS:
            raise SystemExit(message)
        print(message, file=sys.stderr, flush=True)
        self.failed = True
        self._found[EXAMPLE] = {}

    def figures(self) -> dict[str, float]:
        """Return medians, minima and maxima of both, and the medians of their ratios run by run."""
        before = self._judge.error()
        figures = {"error of the velocity before": before}
        for which, found in self._found.items():
            for what, values in found.items():
                figures[f"{which}: {what}"] = statistics.median(values)
                figures[f"{which}: {what}, min"] = min(values)
                figures[f"{which}: {what}, max"] = max(values)
            if "error of the velocity after" in found:
                after = statistics.median(found["error of the velocity after"])
                figures[f"{which}: drop of the error [%]"] = 100 * (before - after) / before
        ours, example = self._found[OURS], self._found[EXAMPLE]
        for what in ("wall [s]", "CPU [s]", "a step [s]"):
            # A figure that one run lacks has no pairs.
            if what in ours and len(ours[what]) == len(example.get(what, [])):
                ratios = [a / b for a, b in zip(ours[what], example[what], strict=True)]
                figures[f"ours / example, {what}, median of pairs"] = statistics.median(ratios)
        return figures


def _first_artist(demo: Path) -> Path:
    tree = StudyTree(demo / "style_mimicry")
    artists = tree.artists(tree.original_art) if tree.original_art.is_dir() else []
    if not artists:
        raise UsageError(f"--demo {demo} holds no study; type mimicry demo {demo}")
    return tree.images_of(tree.original_art, artists[0])


def step_seconds(run: TimedRun) -> float | None:
    """Return the mean seconds of a step from the first to the last; None where the output names no two."""
    ends: dict[int, float] = {}
    for line, when in run.lines:
        found = _STEP.match(line)
        # A progress bar shows the same step many times, and step 0 before the first.
        if found and int(found[1]) > 0:
            ends.setdefault(int(found[1]), when)
    if len(ends) < 2:
        return None
    first, last = min(ends), max(ends)
    return (ends[last] - ends[first]) / (last - first)


if __name__ == "__main__":
    sys.exit(main())
