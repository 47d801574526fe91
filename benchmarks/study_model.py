"""A model of a study's training: workers, start-ups, interruptions and a queue, drawn by chance.

A cell takes its start-up, its training and its end in one worker. What the model does with interruptions is
what apply_tuning does:

- A preemption with notice, and the signal before a job's time limit, write a checkpoint. The cell goes back
  into the queue and goes on from there, after another start-up.
- A preemption without notice, such as the death of a node, loses what was trained since the last checkpoint.
- A training that fails by itself loses as much, and is left to the next call, which begins when this one
  ends.

Interruptions come at a constant rate while a worker works, so the time until the next one is drawn from an
exponential distribution; so is the wait in the queue. The time of a cell's training is drawn from a lognormal
distribution.
"""

import heapq
import math
import random
from dataclasses import dataclass, field

from mimicry.tuning.options.slurm_options import SIGNAL_SECONDS

HOUR = 3600.0
_DAY = 24 * HOUR


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A study and what it is trained on; times are seconds, rates are per day of one worker's work.

    `training` is the mean of what the steps of a cell take, `spread` their standard deviation over it.
    `start` and `end` come before and after them, and `call` before the trainings of a call. With
    `first_alone` the other workers begin when the first training takes its first step, as on one machine.
    `queue` is the mean wait of a job. With `notice` a preemption leaves time for a checkpoint.
    """

    cells: int
    workers: int
    training: float
    spread: float = 0.0
    start: float = 0.0
    end: float = 0.0
    call: float = 0.0
    first_alone: bool = False
    queue: float = 0.0
    time_limit: float = math.inf
    checkpoint: float = math.inf
    failures: float = 0.0
    preemptions: float = 0.0
    notice: bool = True


@dataclass
class Outcome:
    """How a study went; times are seconds, all but `makespan` summed over the workers.

    `trained` is the training that counts, `lost` what was trained in vain, `around` start-ups and ends.
    """

    makespan: float = 0.0
    trained: float = 0.0
    lost: float = 0.0
    around: float = 0.0
    failures: int = 0
    preemptions: int = 0
    time_limits: int = 0
    calls: int = 0
    workers: int = 1

    @property
    def utilisation(self) -> float:
        """The share of the workers' time that went into training that counts."""
        return self.trained / (self.makespan * self.workers) if self.makespan else 0.0


@dataclass
class _Cell:
    whole: float
    done: float = 0.0


@dataclass
class Simulation:
    """One study, with the chances of `rng`."""

    setting: Setting
    rng: random.Random
    outcome: Outcome = field(default_factory=Outcome)

    def run(self) -> Outcome:
        """Return how the study goes."""
        setting = self.setting
        self.outcome.workers = setting.workers
        cells = [_Cell(self._training_time()) for _ in range(setting.cells)]
        now = 0.0
        while cells:
            now, cells = self._call(now, cells)
            self.outcome.calls += 1
        self.outcome.makespan = now
        return self.outcome

    def _call(self, begin: float, cells: list[_Cell]) -> tuple[float, list[_Cell]]:
        """Train `cells`; return when this call ends, and the cells that failed."""
        setting = self.setting
        begin += setting.call
        # Workers by when they are free, cells by when the queue lets them begin.
        free = [begin] * setting.workers
        if setting.first_alone:
            free[1:] = [begin + setting.start] * (setting.workers - 1)
        waiting = [(begin + self._wait(), number) for number in range(len(cells))]
        heapq.heapify(waiting)
        failed, last = [], begin
        while waiting:
            may_begin, number = heapq.heappop(waiting)
            start = max(may_begin, heapq.heappop(free))
            end, state = self._attempt(start, cells[number])
            heapq.heappush(free, end)
            last = max(last, end)
            if state == "failed":
                failed.append(cells[number])
            elif state == "interrupted":
                heapq.heappush(waiting, (end + self._wait(), number))
        return last, failed

    def _attempt(self, start: float, cell: _Cell) -> tuple[float, str]:
        """Train a cell until it is done or interrupted; return when that is, and which of them."""
        setting, outcome = self.setting, self.outcome
        needed = setting.start + cell.whole - cell.done + setting.end
        ends = {
            "failures": self._exponential(setting.failures / _DAY),
            "preemptions": self._exponential(setting.preemptions / _DAY),
            "time_limits": setting.time_limit - SIGNAL_SECONDS,
        }
        cause = min(ends, key=ends.__getitem__)
        took = min(needed, ends[cause])
        trained = min(max(0.0, took - setting.start), cell.whole - cell.done)
        if took == needed:
            outcome.trained += trained
            outcome.around += setting.start + setting.end
            return start + took, "complete"
        setattr(outcome, cause, getattr(outcome, cause) + 1)
        kept = trained
        if cause == "failures" or (cause == "preemptions" and not setting.notice):
            after = cell.done + trained
            kept = max(0.0, after - math.fmod(after, setting.checkpoint) - cell.done)
        outcome.trained += kept
        outcome.lost += trained - kept
        outcome.around += took - trained
        cell.done += kept
        return start + took, "failed" if cause == "failures" else "interrupted"

    def _training_time(self) -> float:
        setting = self.setting
        # The parameters of the lognormal distribution with this mean and spread.
        variance = math.log(1 + setting.spread**2)
        mean = math.log(setting.training) - variance / 2
        return self.rng.lognormvariate(mean, math.sqrt(variance))

    def _wait(self) -> float:
        return self.rng.expovariate(1 / self.setting.queue) if self.setting.queue else 0.0

    def _exponential(self, rate: float) -> float:
        return self.rng.expovariate(rate) if rate else math.inf
