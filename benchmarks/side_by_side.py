"""Train a tiny pilot one after the other and side by side: the same bytes, and how much faster?

    .venv/bin/python -m benchmarks.side_by_side [--parallel 2] [--runs 3] [--matrix] [--demo data/demo]
        [--output FILE]

All trainings have one thread. With --matrix there are twelve of them, else three. The exit code is 1 if a run
failed, or an adapter differs from that of the first run, which was one after the other.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mimicry.common.files import read_json
from mimicry.tuning.adapters.bookmark import STEP
from tests.chaos.tiny_pilot import TinyPilot, add_demo_option, faults_of, start_pilot
from tools.results_file import add_output_option, report

_DEADLINE_SECONDS = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_option(parser)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="Runs of each kind, in turn.")
    parser.add_argument("--matrix", action="store_true", help="Twelve trainings instead of three.")
    add_output_option(parser)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    faults: list[str] = []
    seconds: dict[int, list[float]] = {1: [], options.parallel: []}
    overlaps: dict[int, list[float]] = {1: [], options.parallel: []}
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as name:
        pilot = TinyPilot.prepare(options.demo, Path(name), matrix=options.matrix)
        words = pilot.words
        for run in range(options.runs):
            for parallel in seconds:
                pilot.words = (*words, f"--parallel={parallel}")
                wall, trained, found = _run(pilot, Path(name) / f"{run}-{parallel}")
                seconds[parallel].append(wall)
                overlaps[parallel].append(trained / wall)
                faults += found
    for fault in faults:
        print(fault, file=sys.stderr)
    figures = {"trainings": float(len(pilot.sha256s or {})), "faults": float(len(faults))}
    for parallel, walls in seconds.items():
        figures[f"{parallel} at a time, median [s]"] = statistics.median(walls)
        figures[f"{parallel} at a time, seconds of trainings in a second"] = statistics.median(
            overlaps[parallel]
        )
    report("side_by_side", figures, options.output, load_average_before=load, walls=seconds)
    return 1 if faults else 0


def _run(pilot: TinyPilot, folder: Path) -> tuple[float, float, list[str]]:
    """Return the seconds of a run, the sum of those of its trainings, and what is wrong."""
    tree = pilot.new_tree(folder)
    begin = time.monotonic()
    code = start_pilot(pilot, folder).wait(_DEADLINE_SECONDS)
    wall = time.monotonic() - begin
    if code != 0:
        return wall, 0.0, [(folder / "output.log").read_text("utf-8", "replace")]
    marks = read_json(tree.tracker)["bookmarks"][STEP].values()
    return wall, sum(mark["seconds"] for mark in marks), faults_of(pilot, tree)


if __name__ == "__main__":
    sys.exit(main())
