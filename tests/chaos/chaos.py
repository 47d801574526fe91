"""Kill and damage a tiny pilot at random instants, run it again until it is complete, and compare.

    .venv/bin/python -m tests.chaos.chaos --rounds 100 --seed 0 [--demo data/demo] [--keep DIR] [--output OUT]

Round number n has the seed SEED + n, which decides what is done to it; the instants depend on the machine
too. A round that went wrong is kept in --keep DIR, and the exit code is 1. `--rounds 1 --seed N` repeats it.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import add_output_option, report
from mimicry.common.claims import SILENT_SECONDS
from tests.chaos.disturbances import break_a_file, draw_kill, kill_when_due
from tests.chaos.tiny_pilot import TinyPilot, faults_of, start_pilot

# A run that nobody disturbs must complete what is left; another one may be needed to repair.
_LAST_RUNS = 3
# A damaged claim may name another machine: it is taken over when it has been silent for long.
_END_SECONDS = SILENT_SECONDS + 300.0
_ORPHAN_SECONDS = 40.0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("data/demo"), help="Of `make demo`.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="Keep the rounds that went wrong here.")
    add_output_option(parser)
    asked = parser.parse_args(words)
    # What a shell or nohup makes us ignore would be ignored by the runs, too.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        pilot = TinyPilot.prepare(asked.demo, Path(folder))
        print(f"undisturbed: {pilot.seconds:.1f} s", flush=True)
        wrong, seconds = [], []
        for seed in range(asked.seed, asked.seed + asked.rounds):
            begin = time.monotonic()
            faults = _round(pilot, seed, Path(folder) / f"round-{seed}", asked.keep)
            seconds.append(time.monotonic() - begin)
            print(f"seed {seed}: {'; '.join(faults) or 'clean'}, {seconds[-1]:.1f} s", flush=True)
            wrong += [seed] if faults else []
    figures = {
        "clean rounds": float(len(seconds) - len(wrong)),
        "rounds": float(len(seconds)),
        "undisturbed [s]": pilot.seconds,
        "mean round [s]": sum(seconds) / len(seconds),
    }
    report("chaos", figures, asked.output, first_seed=asked.seed, wrong_seeds=wrong)
    return 1 if wrong else 0


def _round(pilot: TinyPilot, seed: int, folder: Path, keep: Path | None) -> list[str]:
    """Disturb one pilot as `seed` says, and return what is wrong in the end."""
    chance = random.Random(seed)
    tree = pilot.new_tree(folder)
    faults: list[str] = []
    for number in range(chance.randint(1, 3)):
        print(f"seed {seed}: run {number + 1}", flush=True)
        faults += _disturbed_run(pilot, folder, chance)
        if chance.random() < 0.5:
            print(f"seed {seed}:   {break_a_file(tree.lora / pilot.stack, chance)}", flush=True)
    code: int | None = 0
    for _ in range(_LAST_RUNS):
        run = start_pilot(pilot, folder)
        code = run.wait(_END_SECONDS)
        if code == 0:
            break
    if code != 0:
        faults.append(f"exit code {code} of a run that nobody disturbed")
    faults += faults_of(pilot, tree)
    if faults and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, keep / folder.name, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return faults


def _disturbed_run(pilot: TinyPilot, folder: Path, chance: random.Random) -> list[str]:
    """Run the pilot, send it one to three signals, and return what it does that it should not."""
    run = start_pilot(pilot, folder)
    faults = []
    for _ in range(chance.randint(1, 3)):
        kill = draw_kill(chance, pilot.seconds)
        done = kill_when_due(kill, run, folder)
        print(f"    {kill}: {done}", flush=True)
        if run.has_ended():
            break
    code = run.wait(_END_SECONDS)
    if code is None:
        faults.append("a run that was disturbed does not end")
        run.kill()
    left = run.await_no_process(_ORPHAN_SECONDS)
    if left:
        faults.append(f"orphans after {_ORPHAN_SECONDS:g} s: {left}")
    print(f"    exit code {code}", flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(main())
