"""Measure time and memory of each stage of a run: text encoders, VAE, transformer, training.

    .venv/bin/python -m benchmarks.whole_run [--sizes large] [--memory-limits-gib 23.3 15.3] [--output FILE]

Writes a pipeline of random weights with the layout of the real one, and trains a few steps on it with the
ordinary trainer and the study's defaults. The default sizes are those of Stable Diffusion 3.5 Large on CUDA
(28 GB on disk), and small ones elsewhere; `cut` has its widths with fewer layers. A run that succeeds with
a limit of 15.3 or 23.3 shows that every stage fits into a GPU of 16 or 24 GB. Host memory is sampled
every few milliseconds: the process's own, and with mapped files, which the system can drop at any time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.pipeline_sizes import PEAK_LINE, SIZES
from benchmarks.worker import Deadline
from mimicry.study.tree import AdapterId, Artist, Condition, StudyTree
from mimicry.tuning.adapters import METRICS, TRAINING_RUN
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import trainer_flags
from tools.results_file import Results, add_output_option, gpu

_TRAINER = "mimicry.tuning.hf_diffusers.train_dreambooth_lora_sd3"
_STACK, _ARTIST = "hf_diffusers", Artist("historical", "random", "nobody")
_IMAGES = 4
_SAMPLE_SECONDS = 0.005
# Each part begins with the line that starts with these words.
_PARTS = {
    "encoding the prompt": "text encoders",
    "encoding ": "VAE",
    "reading the transformer": "transformer read",
    "training ": "training",
    "saved ": "end",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pipeline_options(parser)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--memory-limits-gib",
        type=float,
        nargs="+",
        default=[0.0],
        help="A run for each: it uses at most this much of the GPU's memory; 0 is no limit.",
    )
    parser.add_argument("--checkpointed-blocks", type=int, help="By default, as few as memory allows.")
    add_output_option(parser)
    options = parser.parse_args()
    deadline = Deadline(options.seconds)
    results = Results(
        "whole_run",
        options.output,
        sizes=options.sizes,
        steps=options.steps,
        checkpointed_blocks_asked=options.checkpointed_blocks,
    )
    with tempfile.TemporaryDirectory() as name:
        pipeline = pipeline_of(options, Path(name))
        sizes = _weight_bytes(pipeline)
        results.add({f"weights of the {part} [GB]": size / 1e9 for part, size in sizes.items()})
        for limit in options.memory_limits_gib:
            # Each run has prompts of its own to encode.
            place = (options.work or Path(name)) / f"limit_{limit:g}"
            training = Training(pipeline, place, SIZES[options.sizes].resolution, options.steps, limit)
            try:
                figures = training.run(deadline.left(), options.checkpointed_blocks)
            except RunFailed as failure:
                results.fail(training.label, str(failure))
            else:
                results.add({f"{training.label}: {what}": value for what, value in figures.items()})
    return 1 if results.problems else 0


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `pipeline_of` reads, and those for folders and time."""
    cuda = gpu() is not None
    parser.add_argument("--sizes", choices=SIZES, default="large" if cuda else "small")
    parser.add_argument("--folder", type=Path, help="Write the pipeline here, or use the one that is here.")
    parser.add_argument("--work", type=Path, help="Keep what is trained here.")
    parser.add_argument("--seconds", type=float, default=3600, help="End what runs after these.")


def pipeline_of(options: argparse.Namespace, work: Path) -> Path:
    """Return the folder of the pipeline, which is written where there is none yet."""
    folder: Path = options.folder or work / "pipeline"
    if not folder.exists():
        # In a process of its own: this one must not use memory of the GPU while the trainer runs.
        command = [sys.executable, "-m", "benchmarks.random_pipeline", str(folder), "--sizes", options.sizes]
        subprocess.run(command, check=True)
    return folder


class RunFailed(Exception):
    """A program failed; the message is the last line that it printed."""


@dataclass(frozen=True)
class Training:
    """A training of the study's defaults on a few random pictures, in a study in the folder `place`."""

    pipeline: Path
    place: Path
    resolution: int
    steps: int
    limit_gib: float

    @property
    def label(self) -> str:
        return f"{self.limit_gib:g} GiB" if self.limit_gib else "no limit"

    @property
    def tree(self) -> StudyTree:
        return StudyTree(self.place / "study")

    @property
    def adapter(self) -> Path:
        return self.tree.adapter_dir(AdapterId(_STACK, Condition(), _ARTIST))

    @property
    def is_done(self) -> bool:
        return (self.adapter / TRAINING_RUN).exists()

    def run(self, seconds: float, checkpointed_blocks: int | None = None) -> dict[str, float]:
        """Train, and return the figures.

        Raises:
            RunFailed: the trainer failed, or took more than these seconds.
        """
        images = self.tree.images_of(self.tree.original_art, _ARTIST)
        _draw_images(images, self.resolution)
        config = TuningConfig(
            pretrained_model_name_or_path=str(self.pipeline),
            resolution=self.resolution,
            max_train_steps=self.steps,
            checkpointed_blocks=checkpointed_blocks,
            prompt_cache_dir=str(self.place / "prompts"),
        )
        flags = [word for words in trainer_flags(config).values() for word in words]
        run = Run(
            [
                *(sys.executable, "-m", "benchmarks.limited", str(self.limit_gib), _TRAINER),
                *("--instance_data_dir", str(images), "--output_dir", str(self.adapter)),
                *flags,
            ],
            _PARTS,
            seconds,
        )
        record = json.loads((self.adapter / TRAINING_RUN).read_text("utf-8"))
        figures = run.figures() | {"checkpointed blocks": float(run.checkpointed)}
        stages = record["stage_seconds"]
        figures |= {f"in the record: {stage} [s]": float(seconds) for stage, seconds in stages.items()}
        if gpu() is not None:
            figures["GPU memory, peak in the record [GiB]"] = record["peak_memory_bytes"] / 2**30
        lines = (self.adapter / METRICS).read_text("utf-8").splitlines()
        steps = [line["seconds"] for line in map(json.loads, lines) if "seconds" in line]
        middle = sorted(steps)[len(steps) // 2]
        return figures | {"optimizer step, first [s]": steps[0], "optimizer step, median [s]": middle}


def _draw_images(folder: Path, resolution: int) -> None:
    folder.mkdir(parents=True)
    for number in range(_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (resolution, resolution, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def _weight_bytes(folder: Path) -> dict[str, int]:
    return {
        part.name: size
        for part in sorted(folder.iterdir())
        if (size := sum(file.stat().st_size for file in part.glob("*.safetensors")))
    }


class Run:
    """One run of a program, with the time and the peak host memory of each part."""

    def __init__(self, command: list[str], parts: Mapping[str, str], seconds: float) -> None:
        """Run `command` to its end.

        Args:
            parts: names of parts, by the words that the first line of each begins with.

        Raises:
            RunFailed: it failed, or took more than these seconds; its output is printed.
        """
        self.checkpointed = 0
        self._part = "start"
        self._seconds: dict[str, float] = defaultdict(float)
        self._own: dict[str, int] = defaultdict(int)
        self._all: dict[str, int] = defaultdict(int)
        self._peaks: dict[str, float] = {}
        if seconds < 1:
            raise RunFailed("no time was left")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        sampler = threading.Thread(target=self._sample, args=(process,), daemon=True)
        sampler.start()
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        lines = self._read(process, parts)
        timer.cancel()
        if process.wait() != 0:
            print("".join(lines), flush=True)
            raise RunFailed(
                f"it took more than {seconds:.0f} s"
                if timer.finished.is_set() and process.returncode == -signal.SIGKILL
                else _last_words(lines) or f"it ended with code {process.returncode}"
            )
        sampler.join()

    def _read(self, process: "subprocess.Popen[str]", parts: Mapping[str, str]) -> list[str]:
        assert process.stdout is not None
        lines, since = [], time.perf_counter()
        for line in process.stdout:
            lines.append(line)
            if line.startswith("checkpointing "):
                self.checkpointed = int(line.split()[1])
            if line.startswith(PEAK_LINE):
                allocated, _, reserved, _ = line.removeprefix(PEAK_LINE).split()
                self._peaks = {"allocated": int(allocated) / 2**30, "reserved": int(reserved) / 2**30}
            part = next((part for words, part in parts.items() if line.startswith(words)), self._part)
            now = time.perf_counter()
            self._seconds[self._part] += now - since
            since, self._part = now, part
        self._seconds[self._part] += time.perf_counter() - since
        return lines

    def figures(self) -> dict[str, float]:
        parts = self._seconds
        return (
            {f"{part} [s]": parts[part] for part in parts}
            | {f"host memory, {part}: own [GB]": self._own[part] / 1e9 for part in parts}
            | {f"host memory, {part}: with mapped files [GB]": self._all[part] / 1e9 for part in parts}
            | {f"GPU memory, peak of what was {kind} [GiB]": peak for kind, peak in self._peaks.items()}
        )

    def _sample(self, process: "subprocess.Popen[str]") -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if "RssAnon" not in facts:  # it has just ended
                return
            own, shared, mapped = (
                int(facts[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem", "RssFile")
            )
            self._own[self._part] = max(self._own[self._part], own + shared)
            self._all[self._part] = max(self._all[self._part], own + shared + mapped)
            time.sleep(_SAMPLE_SECONDS)


def _last_words(lines: list[str]) -> str:
    """Return the last line that says something, the one of the peak left out."""
    said = [line.strip() for line in lines if line.strip() and not line.startswith(PEAK_LINE)]
    return said[-1] if said else ""


if __name__ == "__main__":
    raise SystemExit(main())
