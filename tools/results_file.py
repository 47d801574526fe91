"""Prints the figures of a benchmark as a table, and writes them as JSON with the machine and versions."""

import argparse
import platform
from pathlib import Path
from typing import Any

from mimicry.common.environment import processor_count
from mimicry.common.files import utc_now, write_json
from mimicry.common.text import text_table
from mimicry.common.versions import versions


def add_output_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="Write the figures as JSON too.")


def report(name: str, figures: dict[str, float], output: Path | None, **more: Any) -> None:
    """Print `figures`, and write them to `output` with the machine and versions."""
    print(text_table(("what", "figure"), [(what, f"{value:.3f}") for what, value in figures.items()]))
    if output is not None:
        write_json(
            output,
            {
                "benchmark": name,
                "measured_at": utc_now(),
                "hardware": hardware(),
                "versions": versions(),
                **more,
                "figures": figures,
            },
        )
        print(f"written to {output}")


def hardware() -> dict[str, Any]:
    """Return CPU, cores and GPU of this machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": processor_count(), "gpu": None}
