"""Trainings at the same time on one machine leave the bytes of trainings one after the other."""

from datetime import datetime
from itertools import pairwise
from pathlib import Path

from mimicry.common.files import read_json
from mimicry.tuning.adapters.bookmark import STEP
from tests.chaos.tiny_pilot import TinyPilot, faults_of, start_pilot

DEADLINE_SECONDS = 300


def test_two_at_a_time_leave_the_bytes_of_one_at_a_time(demo_dir: Path, tmp_path: Path) -> None:
    pilot = TinyPilot.prepare(demo_dir, tmp_path)  # one at a time
    pilot.words = (*pilot.words, "--parallel=2")
    folder = tmp_path / "side by side"
    tree = pilot.new_tree(folder)

    code = start_pilot(pilot, folder).wait(DEADLINE_SECONDS)

    assert code == 0, (folder / "output.log").read_text()
    assert faults_of(pilot, tree) == []
    marks = read_json(tree.tracker)["bookmarks"][STEP].values()
    begun = sorted(
        (datetime.fromisoformat(mark["started_at"]).timestamp(), mark["seconds"]) for mark in marks
    )
    # The starts are whole seconds.
    assert any(first + seconds > second + 1 for (first, seconds), (second, _) in pairwise(begun))
