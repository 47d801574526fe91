"""One call of apply_tuning, from the request to the exit code: one method for each verb."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mimicry.common.errors import BatchFault
from mimicry.common.processes import NOT_AS_ASKED, Interrupted
from mimicry.study import Condition, State
from mimicry.tuning.adapters.bookmark import open_tracker
from mimicry.tuning.execution.batch import Batch
from mimicry.tuning.execution.bookkeeping import Result
from mimicry.tuning.execution.executor import Executor
from mimicry.tuning.execution.local import LocalExecutor
from mimicry.tuning.execution.uploads import upload_owed
from mimicry.tuning.hub.names import colliding_names, token_problems
from mimicry.tuning.hub.upload import hub_problems
from mimicry.tuning.options.click_options import TypedCommand
from mimicry.tuning.planning import (
    BatchDisplay,
    Plan,
    Request,
    Target,
    batch_problems,
    make_plan,
    recipe_problems,
)
from mimicry.tuning.planning.image_check import (
    check_images,
    image_lists,
    quarantine_bad_images,
    recall_images,
    write_image_lists,
)
from mimicry.tuning.status import tables

# Nothing failed, and the adapter is not there as the call asks for it.
_NOT_AS_ASKED = {State.STALE, State.RUNNING, State.QUEUED}


@dataclass(frozen=True, kw_only=True)
class Orchestrator:
    """The requests of a call, and how they are carried out; see `make_plan`."""

    requests: tuple[Request, ...]
    absent: tuple[tuple[Condition, str], ...] = ()
    by_condition: bool = False
    study_file: Path | None = None
    typed: TypedCommand = field(default_factory=lambda: TypedCommand(("apply_tuning",), {}))
    quarantine_unpaired: bool = False
    wait: bool = True
    executor: Executor = field(default_factory=LocalExecutor)

    def show(self, *, verbose: bool, full: bool = False) -> int:
        """Print the plan, and what would forbid it; write nothing into the study.

        With `full`, images are decoded and the values of adapters are checked, as a training does first.
        """
        plan = self._looked_at(full=full)
        print(tables.plan_table(plan))
        if verbose:
            print(image_lists(plan), end="")
            print(tables.commands(plan))
        print(self.executor.describe(plan), end="")
        for problem in self._problems(plan, network=False):
            print(f"warning: the training would be refused: {problem}", file=sys.stderr)
        return 0

    def show_json(self, *, full: bool = False) -> int:
        """Print the plan for programs; see `show`."""
        plan = self._looked_at(full=full)
        refused = self._problems(plan, network=False)
        study_file = None if self.study_file is None else str(self.study_file)
        described = {"study_file": study_file, **tables.plan_json(plan), "refused": refused}
        print(json.dumps(described, indent=2))
        return 0

    def train(self, *, verbose: bool) -> int:
        """Train what the plan says and return the exit code.

        Raises:
            BatchFault: nothing can be trained; nothing was written but what was put into quarantine.
        """
        plan = self._plan(full=True)
        if recipe_problems(plan, self.typed):  # images need not be decoded to say that
            raise BatchFault(*self._problems(plan, network=False))
        if self.quarantine_unpaired and quarantine_bad_images(plan, print):
            plan = self._plan(full=True)
        plan = check_images(plan, with_files=True)
        problems = self._problems(plan, network=True)
        if problems:
            raise BatchFault(*problems)
        write_image_lists(plan)
        print(tables.plan_table(plan), flush=True)
        if verbose:
            print(image_lists(plan), end="")
            print(tables.commands(plan), flush=True)
        return self._carry_out(plan)

    def _carry_out(self, plan: Plan) -> int:
        counts = [target.step_count for target in plan.of(State.WAITING, State.QUEUED)]
        display = BatchDisplay(counts, plan.known_seconds(), self.executor.capacity)
        tracker = open_tracker(plan.call.tree)
        batch = Batch(plan, self.executor, tracker, display, wait=self.wait)
        results: list[Result] = []
        try:
            if plan.call.uploads:
                results += upload_owed(plan, tracker, display.say)
            batch.run()
        except Interrupted:
            print("\ninterrupted; the same command takes up where it stopped", file=sys.stderr)
            raise
        finally:
            display.close()
            results += batch.results
            print(tables.summary(plan, results), flush=True)
        return _exit_code(plan, results)

    def _looked_at(self, *, full: bool) -> Plan:
        plan = self._plan(full=full)
        return check_images(plan) if full else recall_images(plan)

    def _plan(self, *, full: bool) -> Plan:
        tree = self.requests[0].tree
        return make_plan(
            self.requests,
            open_tracker(tree).bookmarks(),
            queue=self.executor.queued(tree),
            absent=self.absent,
            by_condition=self.by_condition,
            full=full,
        )

    def _problems(self, plan: Plan, *, network: bool) -> list[str]:
        # One that another call is training now may be left to us.
        targets = plan.of(State.WAITING, State.RUNNING)
        if not targets:
            return []
        problems = recipe_problems(plan, self.typed)
        problems += self._faults_of_stack(plan, targets, network=network)
        if plan.call.uploads:
            names = [
                (plan.name_of(target), target.upload_job.repository)
                for target in plan.targets
                if target.state is not State.NO_DATA
            ]
            problems += colliding_names(names)
            if network and not token_problems():
                uploads = [(target.upload_job, target.images.path) for target in targets]
                problems += hub_problems(uploads)
        return problems

    def _faults_of_stack(self, plan: Plan, targets: Sequence[Target], *, network: bool) -> list[str]:
        call, problems, disk_bytes = plan.call, [], 0
        for request in plan.recipe_requests:
            count = sum(target.request.series == request.series for target in targets)
            if count:
                problems += call.stack.problems(request.stack_config, network=network)
                disk_bytes += call.stack.traits.disk_bytes(request.stack_config, count)
        return batch_problems(
            list(dict.fromkeys(problems)),
            call.tree.lora / plan.requests[0].series,
            len(targets),
            disk_bytes,
            uploads=call.uploads,
        )


def _exit_code(plan: Plan, results: Sequence[Result]) -> int:
    ended = {result.target.adapter: result.state for result in results}
    states = {ended.get(target.adapter, target.state) for target in plan.targets}
    as_asked = {State.COMPLETE, State.NO_DATA}
    if states - as_asked - _NOT_AS_ASKED or any(result.owed for result in results):
        return 1
    return NOT_AS_ASKED if states & _NOT_AS_ASKED else 0
