"""What a whole run takes of time and memory, stage by stage: text encoders, VAE, transformer, training.

    .venv/bin/python -m benchmarks.whole_run [--sizes large] [--memory-limit-gib 16] [--output FILE]

Writes a pipeline of random weights in the layout of the real one, and lets the ordinary trainer train a few
steps on it, with the study's defaults. The default sizes are those of Stable Diffusion 3.5 Large on CUDA (28
GB on disk), and small ones elsewhere; `cut` has its widths with fewer layers. A run that ends under
`--memory-limit-gib` shows that every stage fits into a GPU with so much memory. Host memory is read from the
process every few milliseconds: its own, and with mapped files, which the system can drop at any time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.random_pipeline import SIZES, write_pipeline
from benchmarks.results_file import add_output_option, report
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.trainer_flags import trainer_flags

_IMAGES = 4
_SAMPLE_SECONDS = 0.005
# The first words of the line that begins each part.
_PARTS = {
    "encoding the prompt": "text encoders",
    "encoding ": "VAE",
    "reading the transformer": "transformer read",
    "training ": "training",
    "saved ": "end",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--sizes", choices=SIZES, default="large" if cuda else "small")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--memory-limit-gib", type=float, default=0.0, help="Of the GPU's memory, use so much."
    )
    parser.add_argument("--checkpointed-blocks", type=int, help="By default as few as memory allows.")
    parser.add_argument("--folder", type=Path, help="Keep the pipeline here, or use the one that is here.")
    add_output_option(parser)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = _measure(asked, Path(work))
    report(
        "whole_run",
        figures,
        asked.output,
        sizes=asked.sizes,
        steps=asked.steps,
        memory_limit_gib=asked.memory_limit_gib or None,
        checkpointed_blocks_asked=asked.checkpointed_blocks,
    )


def _measure(asked: argparse.Namespace, work: Path) -> dict[str, float]:
    sizes = SIZES[asked.sizes]
    folder = asked.folder or work / "pipeline"
    if not folder.exists():
        write_pipeline(folder, sizes, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    images = work / "images"
    images.mkdir()
    for number in range(_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (sizes.resolution, sizes.resolution, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number}.png")
    config = TuningConfig(
        pretrained_model_name_or_path=str(folder),
        resolution=sizes.resolution,
        max_train_steps=asked.steps,
        checkpointed_blocks=asked.checkpointed_blocks,
        prompt_cache_dir=str(work / "prompts"),
    )
    flags = [word for words in trainer_flags(config).values() for word in words]
    adapter = work / "adapter"
    run = Run(
        [
            *(sys.executable, "-m", "benchmarks.limited_trainer", str(asked.memory_limit_gib)),
            *("--instance_data_dir", str(images), "--output_dir", str(adapter)),
            *flags,
        ]
    )
    figures = {f"weights of the {name} [GB]": size / 1e9 for name, size in _weight_bytes(folder).items()}
    figures |= run.figures()
    record = json.loads((adapter / "training_run.json").read_text("utf-8"))
    if torch.cuda.is_available():
        figures["GPU memory, whole run: peak [GiB]"] = record["peak_memory_bytes"] / 2**30
    figures["checkpointed blocks"] = float(run.checkpointed)
    lines = (adapter / "metrics.jsonl").read_text("utf-8").splitlines()
    seconds = sorted(line["seconds"] for line in map(json.loads, lines) if "seconds" in line)
    return figures | {"optimizer step, median [s]": seconds[len(seconds) // 2]}


def _weight_bytes(folder: Path) -> dict[str, int]:
    return {
        part.name: size
        for part in sorted(folder.iterdir())
        if (size := sum(file.stat().st_size for file in part.glob("*.safetensors")))
    }


class Run:
    """One run of the trainer: how long each part took, and the most host memory that it had meanwhile."""

    def __init__(self, command: list[str]) -> None:
        """Run `command` to its end.

        Raises:
            SystemExit: it failed; the message is what it printed.
        """
        self.checkpointed = 0
        self._part = "start"
        self._seconds: dict[str, float] = defaultdict(float)
        self._own: dict[str, int] = defaultdict(int)
        self._all: dict[str, int] = defaultdict(int)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        sampler = threading.Thread(target=self._sample, args=(process,), daemon=True)
        sampler.start()
        assert process.stdout is not None
        lines, since = [], time.perf_counter()
        for line in process.stdout:
            lines.append(line)
            if line.startswith("checkpointing "):
                self.checkpointed = int(line.split()[1])
            part = next((part for words, part in _PARTS.items() if line.startswith(words)), self._part)
            now = time.perf_counter()
            self._seconds[self._part] += now - since
            since, self._part = now, part
        self._seconds[self._part] += time.perf_counter() - since
        if process.wait() != 0:
            raise SystemExit("".join(lines))
        sampler.join()

    def figures(self) -> dict[str, float]:
        parts = self._seconds
        return (
            {f"{part} [s]": parts[part] for part in parts}
            | {f"host memory, {part}: own [GB]": self._own[part] / 1e9 for part in parts}
            | {f"host memory, {part}: with mapped files [GB]": self._all[part] / 1e9 for part in parts}
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


if __name__ == "__main__":
    main()
