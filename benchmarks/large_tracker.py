"""How long one bookmark takes in a tracker that has very many.

    .venv/bin/python -m benchmarks.large_tracker [--bookmarks 100000] [--output FILE]

Half of the bookmarks are another step's. Reports the median of several settings, in seconds.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import add_output_option, report
from mimicry.common.files import write_json
from mimicry.study.states import State
from mimicry.study.tree import StudyTree
from mimicry.tuning.execution.bookmarks import STEP, open_tracker


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bookmarks", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    add_output_option(parser)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        tree = StudyTree(Path(folder))
        half = asked.bookmarks // 2
        steps = {step: _bookmarks(half) for step in ("step_2_protect", STEP)}
        write_json(tree.tracker, {"metadata": {}, "step_status": {}, "bookmarks": steps, "snapshot": {}})
        tracker = open_tracker(tree)
        setting, computing, reading = [], [], []
        for number in range(asked.runs):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            tracker.record(f"hf_diffusers/none/none/new/{number}", status=State.COMPLETE, loss=0.5)
            setting.append(time.perf_counter() - begin)
            computing.append(time.process_time() - cpu_begin)
            begin = time.perf_counter()
            assert len(tracker.bookmarks()) == half + number + 1
            reading.append(time.perf_counter() - begin)
        size = tree.tracker.stat().st_size
    figures = {
        f"setting one of {asked.bookmarks} bookmarks [s]": statistics.median(setting),
        "of which computing [s]": statistics.median(computing),
        "reading all [s]": statistics.median(reading),
        "size of the tracker [MB]": size / 1e6,
    }
    report("large_tracker", figures, asked.output, runs=asked.runs, load_average_before=load)


def _bookmarks(count: int) -> dict[str, dict[str, object]]:
    """Return bookmarks with the fields that a complete training has."""
    return {
        f"hf_diffusers/mist/none/historical/style_{number % 10}/artist_{number:06}": {
            "status": "complete",
            "started_at": "2026-01-01T00:00:00+00:00",
            "updated_at": "2026-01-01T00:30:00+00:00",
            "seconds": 1800.0,
            "images": 20,
            "steps": 500,
            "loss": 0.25,
            "log": f"models/lora/hf_diffusers/mist__none/historical/x/artist_{number:06}/train.log",
        }
        for number in range(count)
    }


if __name__ == "__main__":
    main()
