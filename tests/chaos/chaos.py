"""Kill and damage a tiny pilot at random moments, run it again until it is complete, and compare.

    .venv/bin/python -m tests.chaos.chaos --rounds 100 --seed 0 [--matrix]
        [--parallel 2] [--demo data/demo] [--keep DIR] [--output OUT]

Round number n has the seed SEED + n, which decides what is done; the moments also depend on the machine.
With --matrix, the study has several conditions and replicates. With --parallel, the disturbed runs train side
by side, and must end like the undisturbed one, which does not. A round that fails is kept in --keep DIR, and
the exit code is 1. `--rounds 1 --seed N` repeats it.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from mimicry.common.claims import SILENT_SECONDS
from tests.chaos.disturbances import break_a_file, draw_kill, kill_when_due
from tests.chaos.tiny_pilot import TinyPilot, faults_of, start_pilot
from tools.results_file import add_output_option, report

# An undisturbed run must complete what is left; it may take another one to repair the damage.
_LAST_RUNS = 3
# A damaged claim may name another machine. It is taken over after a long silence.
_END_SECONDS = SILENT_SECONDS + 300.0
_ORPHAN_SECONDS = 40.0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--demo", type=Path, default=Path("data/demo"), help="The folder that `make demo` made."
    )
    parser.add_argument(
        "--matrix", action="store_true", help="Two artists in three conditions with two seeds, not a pilot."
    )
    parser.add_argument("--parallel", type=int, default=1, help="Trainings at a time in disturbed runs.")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="Keep failed rounds here.")
    add_output_option(parser)
    options = parser.parse_args(words)
    # Signals that a shell or nohup makes this process ignore would be ignored by the runs too.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        pilot = TinyPilot.prepare(options.demo, Path(folder), matrix=options.matrix)
        pilot.words = (*pilot.words, f"--parallel={options.parallel}")
        print(f"undisturbed: {pilot.seconds:.1f} s", flush=True)
        failed_seeds, seconds = [], []
        for seed in range(options.seed, options.seed + options.rounds):
            begin = time.monotonic()
            faults = _round(pilot, seed, Path(folder) / f"round-{seed}", options.keep)
            seconds.append(time.monotonic() - begin)
            print(f"seed {seed}: {'; '.join(faults) or 'clean'}, {seconds[-1]:.1f} s", flush=True)
            failed_seeds += [seed] if faults else []
    figures = {
        "clean rounds": float(len(seconds) - len(failed_seeds)),
        "rounds": float(len(seconds)),
        "undisturbed [s]": pilot.seconds,
        "mean round [s]": sum(seconds) / len(seconds),
    }
    report("chaos", figures, options.output, first_seed=options.seed, wrong_seeds=failed_seeds)
    return 1 if failed_seeds else 0


def _round(pilot: TinyPilot, seed: int, folder: Path, keep: Path | None) -> list[str]:
    """Disturb one pilot as `seed` decides, and return what is wrong in the end."""
    rng = random.Random(seed)
    tree = pilot.new_tree(folder)
    faults: list[str] = []
    for number in range(rng.randint(1, 3)):
        print(f"seed {seed}: run {number + 1}", flush=True)
        faults += _disturbed_run(pilot, folder, rng)
        if rng.random() < 0.5:
            print(f"seed {seed}:   {break_a_file(tree.lora / pilot.stack, rng)}", flush=True)
    code: int | None = 0
    for _ in range(_LAST_RUNS):
        run = start_pilot(pilot, folder)
        code = run.wait(_END_SECONDS)
        if code == 0:
            break
    if code != 0:
        faults.append(f"exit code {code} of an undisturbed run")
    faults += faults_of(pilot, tree)
    if faults and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, keep / folder.name, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return faults


def _disturbed_run(pilot: TinyPilot, folder: Path, rng: random.Random) -> list[str]:
    """Run the pilot, send it one to three signals, and return what went wrong."""
    run = start_pilot(pilot, folder)
    faults = []
    for _ in range(rng.randint(1, 3)):
        kill = draw_kill(rng, pilot.seconds)
        done = kill_when_due(kill, run, folder)
        print(f"    {kill}: {done}", flush=True)
        if run.has_ended():
            break
    code = run.wait(_END_SECONDS)
    if code is None:
        faults.append("a disturbed run does not end")
        run.kill()
    left = run.await_no_process(_ORPHAN_SECONDS)
    if left:
        faults.append(f"orphans after {_ORPHAN_SECONDS:g} s: {left}")
    print(f"    exit code {code}", flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(main())
