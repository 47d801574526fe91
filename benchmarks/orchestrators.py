"""Run several calls of apply_tuning at once on one study: is each artist trained once, and how fast?

    .venv/bin/python -m benchmarks.orchestrators [--calls 8] [--artists 24] [--demo data/demo] [--output FILE]

Each artist has a few paintings of the demo study, and trainings are as short as possible. The exit code is 1
if an artist was trained twice or not at all, or if a call had an exit code other than 0.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mimicry.common.files import read_json
from mimicry.study.tree import Artist, StudyTree
from mimicry.tuning.adapters.bookmark import STEP
from mimicry.tuning.adapters.folder import TRAIN_LOG
from tests.chaos.tiny_pilot import TinyPilot, add_demo_option, start_pilot
from tools.results_file import add_output_option, report

_DEADLINE_SECONDS = 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_option(parser)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--artists", type=int, default=24)
    add_output_option(parser)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="orchestrators-") as name:
        folder = Path(name)
        pilot = TinyPilot.copied(options.demo, folder)
        tree = _multiplied(pilot, folder, options.artists)
        begin = time.monotonic()
        # Every artist has a style of its own, so --pilot takes all of them.
        calls = [start_pilot(pilot, folder) for _ in range(options.calls)]
        codes = [call.wait(_DEADLINE_SECONDS) for call in calls]
        seconds = time.monotonic() - begin
        trainings = Counter(
            (path / TRAIN_LOG).read_text("utf-8", "replace").count("\nmimicry ")
            for path in pilot.output_dirs(tree).values()
        )
        marks = read_json(tree.tracker)["bookmarks"][STEP].values()
        complete = sum(mark["status"] == "complete" for mark in marks)
        if codes != [0] * options.calls:
            print((folder / "output.log").read_text("utf-8", "replace"), file=sys.stderr)
    figures = {
        "calls": float(options.calls),
        "artists": float(options.artists),
        "artists trained once": float(trainings[1]),
        "bookmarks that say complete": float(complete),
        "calls with exit code 0": float(codes.count(0)),
        "all [s]": seconds,
    }
    report("orchestrators", figures, options.output, load_average_before=load)
    as_expected = (
        trainings == {1: options.artists} and complete == options.artists and codes == [0] * options.calls
    )
    return 0 if as_expected else 1


def _multiplied(pilot: TinyPilot, folder: Path, count: int) -> StudyTree:
    """Return a study of `count` artists that have the paintings of the pilot's artists in turn."""
    template, tree = StudyTree(pilot.template), StudyTree(folder / "study")
    models = template.artists(template.original_art)
    for number in range(count):
        source = template.images_of(template.original_art, models[number % len(models)])
        artist = Artist("historical", f"style_{number:02}", f"artist_{number:02}")
        shutil.copytree(source, tree.images_of(tree.original_art, artist))
    return tree


if __name__ == "__main__":
    sys.exit(main())
