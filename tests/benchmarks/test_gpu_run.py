"""The script for one GPU, with a stand-in for Python."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["facts", "pytest", "gpu_checks", "train_step", "whole_run", "samples"]
# Notes what it is asked to run; fails for the module that FAILING names, and hangs for the one in HANGING.
STAND_IN = """#!/usr/bin/env bash
echo "$2 ${@:3}" >>"$NOTES"
echo "output of $2"
[ "$2" != "${HANGING:-}" ] || sleep 600
[ "$2" != "${FAILING:-}" ] || exit 1
[ "$2" != benchmarks.random_pipeline ] || mkdir "$3"
"""


class Script:
    """Runs the script; `asked` is what it ran in Python, and `out` its folder."""

    def __init__(self, folder: Path) -> None:
        self.python, self.notes, self.out = folder / "python", folder / "notes", folder / "out"
        self.python.write_text(STAND_IN, "utf-8")
        self.python.chmod(0o755)

    def run(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        known = {"PYTHON": str(self.python), "NOTES": str(self.notes)}
        return subprocess.run(
            [ROOT / "benchmarks" / "gpu_run.sh", *words, "--small", str(self.out)],
            env=os.environ | known | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def asked(self) -> list[str]:
        return self.notes.read_text("utf-8").splitlines() if self.notes.exists() else []


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def test_all_parts_run_in_their_order(script: Script) -> None:
    done = script.run()

    assert done.returncode == 0, done.stdout
    modules = [line.split()[0] for line in script.asked]
    assert sorted(modules[1:3]) == ["benchmarks.random_pipeline", "pytest"]  # side by side
    assert [modules[0], *modules[3:]] == [
        *("benchmarks.gpu_facts", "benchmarks.gpu_checks", "benchmarks.train_step"),
        *("benchmarks.whole_run", "benchmarks.samples_run"),
    ]
    summary = done.stdout.splitlines()[-len(PARTS) :]
    assert [line.split()[:2] for line in summary] == [[part, "done,"] for part in PARTS]
    assert (script.out / "run.log").read_text("utf-8") == done.stdout
    assert "output of pytest" in (script.out / "pytest.txt").read_text("utf-8")


def test_the_pipeline_is_written_once_and_read_by_both(script: Script, tmp_path: Path) -> None:
    kept = tmp_path / "kept"

    for _ in range(2):
        script.run("--parts", "whole_run samples", "--pipeline", str(kept))

    assert [line.split()[0] for line in script.asked].count("benchmarks.random_pipeline") == 1
    readers = [line for line in script.asked if "random_pipeline" not in line]
    assert len(readers) == 4
    assert all(f"--folder {kept} " in line for line in readers)


def test_a_part_that_fails_leaves_the_others_alone(script: Script) -> None:
    done = script.run("--parts", "facts train_step", FAILING="benchmarks.gpu_facts")

    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[-2:]] == [
        ["facts", "failed,"],
        ["train_step", "done,"],
    ]


def test_without_a_pipeline_the_run_writes_a_smaller_one(script: Script, tmp_path: Path) -> None:
    done = script.run(
        *("--parts", "whole_run", "--pipeline", str(tmp_path / "kept")), FAILING="benchmarks.random_pipeline"
    )
    (run,) = (line.split() for line in script.asked if "whole_run" in line)

    assert "no pipeline yet" in done.stdout
    assert Path(run[run.index("--folder") + 1]).name == "smaller"


def test_a_part_without_time_is_skipped(script: Script) -> None:
    done = script.run("--budget", "5")

    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[-len(PARTS) :]] == [
        [part, "skipped:"] for part in PARTS
    ]
    assert {line.split()[0] for line in script.asked} <= {"benchmarks.random_pipeline"}


def test_a_part_that_hangs_is_ended_with_all_that_it_started(script: Script) -> None:
    done = script.run("--parts", "facts", "--budget", "10", HANGING="benchmarks.gpu_facts")

    assert done.returncode == 1
    assert "facts       ended after" in done.stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--parts", "facts swim"), "'swim'"),
        (("--budget", "long"), "'long'"),
        (("--fast",), "--fast"),
    ],
)
def test_what_it_does_not_know_is_refused(script: Script, words: tuple[str, ...], what: str) -> None:
    done = script.run(*words)

    assert done.returncode == 2
    assert what in done.stderr
    assert not script.out.exists()
