"""Prints the figures of a benchmark as a table, and writes them as JSON with the machine and versions."""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mimicry
from mimicry.common.environment import processor_count, versions
from mimicry.common.files import utc_now, write_json
from mimicry.common.text import text_table

_GPU_FACTS = ("name", "memory.total", "compute_cap", "driver_version")


def add_output_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="Write the figures as JSON too.")


class Results:
    """The figures of a benchmark. Each is printed and written when it comes, so that none is lost later.

    `more` are further facts, of any kind that JSON has.
    """

    def __init__(self, name: str, output: Path | None, **more: Any) -> None:
        self.more = more
        self.figures: dict[str, float | bool] = {}
        self.problems: dict[str, str] = {}
        self._output = output
        self.about: dict[str, Any] = {
            "benchmark": name,
            "measured_at": utc_now(),
            "hardware": hardware(),
            "versions": versions(mimicry),
        }

    def add(self, figures: Mapping[str, float | bool]) -> None:
        """Print and keep figures, each by what it says."""
        self.figures |= figures
        print(text_table(("what", "figure"), [(what, _text(value)) for what, value in figures.items()]))
        self.write()

    def fail(self, what: str, problem: str) -> None:
        """Print and keep why there are no figures of `what`."""
        self.problems[what] = problem
        print(f"{what}: {problem}", flush=True)
        self.write()

    def write(self) -> None:
        sys.stdout.flush()
        if self._output is not None:
            # A run without problems looks as it always did.
            problems = {"problems": self.problems} if self.problems else {}
            write_json(self._output, {**self.about, **self.more, **problems, "figures": self.figures})


def report(name: str, figures: Mapping[str, float | bool], output: Path | None, **more: Any) -> None:
    """Print `figures`, and write them to `output` with the machine and versions."""
    Results(name, output, **more).add(figures)
    if output is not None:
        print(f"written to {output}")


def _text(value: float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def hardware() -> dict[str, Any]:
    """Return CPU, cores and GPU of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": processor_count(), "gpu": gpu()}


def gpu() -> dict[str, str] | None:
    """Return name, memory, compute capability and driver of the first GPU that is visible, or None.

    It asks nvidia-smi: a benchmark that does not use the GPU need not import torch, and one whose child uses
    it keeps no memory of its own there.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first in ("", "-1"):
        return None
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FACTS)}", "--format=csv,noheader", "-i", first]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    values = [value.strip() for value in done.stdout.strip().partition("\n")[0].split(",")]
    return dict(zip(_GPU_FACTS, values, strict=True)) if len(values) == len(_GPU_FACTS) else None
