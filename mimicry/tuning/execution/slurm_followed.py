"""A cell in the queue of a cluster, and what is shown of its training while it runs."""

from dataclasses import dataclass

from mimicry.tuning.execution.slurm_queue import QueuedJob
from mimicry.tuning.execution.supervision import MetricsReader
from mimicry.tuning.planning import Target
from mimicry.tuning.planning.display import BatchDisplay, StepDisplay


@dataclass
class Followed:
    """A cell in the queue.

    `submitted` says whether this call has put it there, `job` is as it was last seen, and `gone_at` is since
    when it is not live.
    """

    target: Target
    label: str
    submitted: bool
    job: QueuedJob | None = None
    gone_at: float | None = None
    is_said_to_be_stuck: bool = False
    _metrics: MetricsReader | None = None
    _steps: StepDisplay | None = None

    @property
    def runs(self) -> bool:
        return self.job is not None and self.job.runs

    @property
    def is_stuck(self) -> bool:
        return self.job is not None and self.job.is_stuck

    @property
    def is_shown(self) -> bool:
        return self._steps is not None

    def begin(self, display: BatchDisplay, name: str, position: int) -> None:
        """Show the training from now on, on the line `position` of a terminal."""
        self._steps = StepDisplay(name, self.target.step_count, position=position)
        self._metrics = MetricsReader(self.target.folder.metrics)
        display.begin(self.target.adapter.key, self.target.step_count)

    def show_steps(self, display: BatchDisplay) -> None:
        """Show the last step that was taken since the last look."""
        assert self._steps is not None
        assert self._metrics is not None
        # One look sees many steps, which were not taken just now.
        for line in [line for line in self._metrics.new_lines() if "loss" in line][-1:]:
            self._steps.step(line)
            display.step(self.target.adapter.key, int(line["step"]))
        self._steps.tick()

    def hide(self, display: BatchDisplay) -> None:
        """Show it no longer, if it was shown; its job may run again."""
        if self._close_steps():
            display.leave(self.target.adapter.key)

    def end(self, display: BatchDisplay, *, well: bool) -> None:
        """Show that it is over."""
        if self._close_steps():
            display.end(self.target.adapter.key, well=well)
        else:
            # It was not seen to run, so nobody knows how long it took.
            display.begin(self.target.adapter.key, self.target.step_count)
            display.end(self.target.adapter.key, well=False)

    def _close_steps(self) -> bool:
        if self._steps is None:
            return False
        self._steps.close()
        self._steps = self._metrics = None
        return True
