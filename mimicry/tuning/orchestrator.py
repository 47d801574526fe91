"""One call of apply_tuning, from the request to the exit code: one method for each verb."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mimicry.common.children import Interrupted
from mimicry.common.errors import BatchFault
from mimicry.study import State
from mimicry.study.tracker import ProgressTracker
from mimicry.tuning.execution import (
    Batch,
    LocalExecutor,
    Result,
    open_tracker,
    pending_of_plan,
    upload_pending,
)
from mimicry.tuning.hub import colliding_names, hub_problems, token_problems
from mimicry.tuning.planning import Plan, Request, make_plan
from mimicry.tuning.planning.image_check import (
    check_images,
    image_lists,
    quarantine_bad_images,
    recall_images,
    write_image_lists,
)
from mimicry.tuning.planning.preflight import batch_problems
from mimicry.tuning.progress import BatchDisplay
from mimicry.tuning.reports import tables


@dataclass(frozen=True, kw_only=True)
class Orchestrator:
    """A request, and how it is carried out."""

    request: Request
    quarantine_unpaired: bool = False
    wait: bool = True

    def show(self, *, verbose: bool) -> int:
        """Print the plan, and what would forbid it; write nothing."""
        plan = recall_images(self._plan(full=False))
        print(tables.plan_table(plan))
        if verbose:
            print(image_lists(plan), end="")
            print(tables.commands(plan))
        for problem in self._problems(plan, network=False):
            print(f"warning: the training would be refused: {problem}", file=sys.stderr)
        return 0

    def show_json(self) -> int:
        """Print the plan for programs; write nothing."""
        print(json.dumps(tables.plan_json(recall_images(self._plan(full=False))), indent=2))
        return 0

    def train(self, *, verbose: bool) -> int:
        """Train what the plan says and return the exit code.

        Raises:
            BatchFault: nothing can be trained; nothing was written but what was put into quarantine.
        """
        plan = self._plan(full=True)
        if self.quarantine_unpaired and quarantine_bad_images(plan, print):
            plan = self._plan(full=True)
        tree = self.request.tree
        lists_at = tree.image_lists(self.request.condition).relative_to(tree.data_root)
        plan = check_images(plan, str(lists_at))
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
        todo = plan.of(State.PENDING)
        display = BatchDisplay(len(todo), max((target.step_count for target in todo), default=0))
        tracker = open_tracker(self.request.tree)
        batch = Batch(plan, LocalExecutor(), tracker, display, wait=self.wait)
        results: list[Result] = []
        try:
            if self.request.uploads:
                results += _upload_pending(plan, tracker, display.say)
            batch.run()
        except Interrupted:
            print("\ninterrupted; the same command takes up where it stopped", file=sys.stderr)
            raise
        finally:
            display.close()
            results += batch.results
            print(tables.summary(plan, results), flush=True)
        is_good = all(result.is_good for result in results) and not plan.of(State.BLOCKED)
        return 0 if is_good else 1

    def _plan(self, *, full: bool) -> Plan:
        return make_plan(self.request, open_tracker(self.request.tree).bookmarks(), full=full)

    def _problems(self, plan: Plan, *, network: bool) -> list[str]:
        """Return what forbids the whole batch; nothing when there is nothing to train."""
        # One that another call is training now may be left to us.
        targets = plan.of(State.PENDING, State.CLAIMED)
        if not targets:
            return []
        request = self.request
        stack, config = request.stack, request.stack_config
        problems = batch_problems(
            stack.problems(config, network=network),
            request.tree.lora / stack.name,
            len(targets),
            stack.traits.disk_bytes(config, len(targets)),
            uploads=request.uploads,
        )
        if request.uploads:
            names = [(str(target.artist), target.upload_job.repository) for target in plan.targets]
            problems += colliding_names(names)
            if network and not token_problems():
                uploads = [(target.upload_job, target.images.path) for target in targets]
                problems += hub_problems(uploads)
        return problems


def _upload_pending(plan: Plan, tracker: ProgressTracker, say: Callable[[str], None]) -> list[Result]:
    """Upload what earlier calls could not upload."""
    targets = {target.adapter: target for target in plan.targets}
    ends = upload_pending(plan.request.tree, pending_of_plan(plan), tracker, say)
    results = []
    for end in ends:
        target = targets[end.adapter]
        results.append(Result(target=target, state=target.existing, uploaded=not end.error, owed=end.error))
    return results
