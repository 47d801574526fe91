"""Estimate how long a study takes, or compare such an estimate with a real run of a tiny study.

    .venv/bin/python -m benchmarks.study_time --cells 1638 --gpus 4 --minutes 8.2 --start-up 45
        [--spread 0.02] [--queue-minutes 20 --time-limit 120] [--checkpoint-minutes 1.6]
        [--failures-per-day 0.1] [--preemptions-per-day 2 [--without-notice]] [--studies 200] [--output FILE]
    .venv/bin/python -m benchmarks.study_time --compare [--demo data/demo] [--output FILE]

What `mimicry status` and the record of a finished adapter say are good values: `stage_seconds` has the
training, `train`, and the start-up, the rest. Rates are for a day of one GPU's work. The model is in
`study_model.py`. Without --queue-minutes it is one machine, where the first training begins alone. Figures
are of many simulated studies: the median, and where it says so the range of nine tenths of them.

With --compare, six tiny trainings are measured, one at a time and two at a time, and what the model makes of
them for twelve is compared with the time that twelve take.
"""

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.study_model import HOUR, Outcome, Setting, Simulation
from mimicry.common.files import read_json
from mimicry.study.tree import NONE
from mimicry.tuning.adapters.bookmark import STEP
from mimicry.tuning.adapters.training_run import TRAINING_RUN
from mimicry.tuning.options.slurm_options import SIGNAL_SECONDS
from tests.chaos.tiny_pilot import TinyPilot, add_demo_option
from tools.results_file import add_output_option, report

_MINUTE = 60.0
_STEPS = 40


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.compare:
        return _compare(options.demo, options.studies, options.output)
    setting = Setting(
        cells=options.cells,
        workers=options.gpus,
        training=options.minutes * _MINUTE,
        spread=options.spread,
        start=options.start_up,
        end=options.end,
        first_alone=options.queue_minutes is None,
        queue=(options.queue_minutes or 0.0) * _MINUTE,
        time_limit=options.time_limit * _MINUTE,
        checkpoint=options.checkpoint_minutes * _MINUTE,
        failures=options.failures_per_day,
        preemptions=options.preemptions_per_day,
        notice=not options.without_notice,
    )
    if setting.time_limit - SIGNAL_SECONDS <= setting.start:
        parser.error(
            f"--time-limit {options.time_limit:g}: a job stops {SIGNAL_SECONDS // 60} minutes before its "
            f"limit, so it needs more than {(setting.start + SIGNAL_SECONDS) / _MINUTE:.1f} to take a step"
        )
    asked = {name: value for name, value in asdict(setting).items() if value != math.inf}
    report("study_time", _figures(_studies(setting, options.studies)), options.output, setting=asked)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number, amount = _at_least(int, 1), _at_least(float, 0.0)
    parser.add_argument(
        "--cells", type=number, default=1638, help="Trainings: 546 adapters times three seeds."
    )
    parser.add_argument("--gpus", type=number, default=4, help="Trainings at a time.")
    parser.add_argument("--minutes", type=_at_least(float, 0.001), default=8.2, help="Training of a cell.")
    parser.add_argument("--spread", type=amount, default=0.0, help="Standard deviation of it over its mean.")
    parser.add_argument("--start-up", type=amount, default=45.0, help="Seconds before the first step.")
    parser.add_argument("--end", type=amount, default=5.0, help="Seconds after the last step.")
    parser.add_argument("--queue-minutes", type=amount, help="Mean wait of a job in a cluster's queue.")
    parser.add_argument("--time-limit", type=amount, default=math.inf, help="Minutes that a job may take.")
    parser.add_argument(
        "--checkpoint-minutes", type=_at_least(float, 0.001), default=math.inf, help="Between checkpoints."
    )
    parser.add_argument("--failures-per-day", type=amount, default=0.0)
    parser.add_argument("--preemptions-per-day", type=amount, default=0.0)
    parser.add_argument("--without-notice", action="store_true", help="Preemptions leave no checkpoint.")
    parser.add_argument("--studies", type=number, default=200, help="Studies to simulate.")
    parser.add_argument("--compare", action="store_true", help="Compare with real runs of a tiny study.")
    add_demo_option(parser)
    add_output_option(parser)
    return parser


def _at_least(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    """Return a type for argparse: a number of this kind that is `least` or more."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text}: it takes {least:g} or more")
        return value

    parse.__name__ = "number"
    return parse


def _studies(setting: Setting, count: int) -> list[Outcome]:
    return [Simulation(setting, random.Random(seed)).run() for seed in range(count)]


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    def median(value: Callable[[Outcome], float]) -> float:
        return statistics.median(value(outcome) for outcome in outcomes)

    makespans = sorted(outcome.makespan / HOUR for outcome in outcomes)
    tail = len(makespans) // 20
    return {
        "from the first call to the last adapter [h]": median(lambda one: one.makespan / HOUR),
        "the same, 5 of 100 studies are faster [h]": makespans[tail],
        "the same, 5 of 100 studies are slower [h]": makespans[-1 - tail],
        "share of the GPUs' time that went into training that counts": median(lambda one: one.utilisation),
        "training that counts [GPU h]": median(lambda one: one.trained / HOUR),
        "start-ups and ends [GPU h]": median(lambda one: one.around / HOUR),
        "training in vain [GPU h]": median(lambda one: one.lost / HOUR),
        "failures": median(lambda one: one.failures),
        "preemptions": median(lambda one: one.preemptions),
        "time limits": median(lambda one: one.time_limits),
        "calls": median(lambda one: one.calls),
    }


@dataclass(frozen=True)
class _Measured:
    """A real run: its wall time, and how long each training took, and its steps."""

    wall: float
    seconds: list[float]
    training: list[float]


def _compare(demo: Path, studies: int, output: Path | None) -> int:
    figures: dict[str, float] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="study-time-") as name:
        pilot = replace(TinyPilot.copied(demo, Path(name), matrix=True), steps=_STEPS)
        # The first run of all fills the disk cache, and the prompt cache.
        pilot.train(Path(name) / "warm-up", f"--variant={NONE}")
        for workers in (1, 2):
            parallel = f"--parallel={workers}"
            six = _measure(pilot, Path(name) / f"six-{workers}", parallel, f"--variant={NONE}")
            _, call = pilot.train(Path(name) / f"plan-{workers}", parallel, "--dry-run")
            setting = _setting_of(six, cells=12, workers=workers, call=call)
            estimate = statistics.median(one.makespan for one in _studies(setting, studies))
            twelve = _measure(pilot, Path(name) / f"twelve-{workers}", parallel)
            what = f"twelve trainings, {workers} at a time"
            figures |= {
                f"{what}: estimated from six [s]": estimate,
                f"{what}: took [s]": twelve.wall,
                f"{what}: estimate over time": estimate / twelve.wall,
            }
    report("study_time_compared", figures, output, load_average_before=load)
    return 0


def _measure(pilot: TinyPilot, folder: Path, *words: str) -> _Measured:
    """Train a new copy of the study."""
    tree, wall = pilot.train(folder, *words)
    marks = read_json(tree.tracker)["bookmarks"][STEP].values()
    records = [read_json(path) for path in tree.lora.rglob(TRAINING_RUN)]
    training = [record["stage_seconds"]["train"] for record in records]
    return _Measured(wall, [mark["seconds"] for mark in marks if "seconds" in mark], training)


def _setting_of(run: _Measured, *, cells: int, workers: int, call: float) -> Setting:
    training = statistics.fmean(run.training)
    spread = statistics.stdev(run.training) / training
    around = statistics.fmean(run.seconds) - training
    return Setting(
        cells=cells,
        workers=workers,
        training=training,
        spread=spread,
        start=around,
        call=call,
        first_alone=workers > 1,
    )


if __name__ == "__main__":
    sys.exit(main())
