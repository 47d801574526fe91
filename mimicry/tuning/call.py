"""One call of apply_tuning, from the options to the exit code."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.children import Interrupted
from mimicry.common.errors import BatchFault
from mimicry.common.images import unreadable_images
from mimicry.common.study_tree import Condition, StudyTree
from mimicry.tuning import report
from mimicry.tuning.batch import Batch, LocalExecutor
from mimicry.tuning.bookmarks import open_tracker
from mimicry.tuning.config import TuningConfig
from mimicry.tuning.display import BatchDisplay
from mimicry.tuning.existing import Asked, judge_existing
from mimicry.tuning.hub import colliding_names, repository_name
from mimicry.tuning.options import option_words
from mimicry.tuning.plan import Action, Plan, Request, Target, make_plan
from mimicry.tuning.preflight import batch_problems
from mimicry.tuning.provenance import trainer_identity
from mimicry.tuning.runner_common import Stack
from mimicry.tuning.selection import Selection
from mimicry.tuning.verify import verify


@dataclass(frozen=True, kw_only=True)
class Call:
    """What was typed: hyper-parameters, stack, request, and what else is handed on to the stack."""

    config: TuningConfig
    stack: Stack
    request: Request
    push_to_hub: bool
    hub_namespace: str | None
    base_model_id: str | None
    train_script: Path | None
    stall_minutes: float
    wait: bool

    @classmethod
    def make(
        cls, config: TuningConfig, stack: Stack, condition: Condition, parameters: Mapping[str, Any]
    ) -> "Call":
        """Return the call that the command's other `parameters` stand for."""
        request = Request(
            tree=StudyTree(parameters["data_root"]),
            stack=stack.name,
            condition=condition,
            selection=Selection(
                splits=parameters["splits"],
                styles=parameters["styles"],
                artists=parameters["artists"],
                pilot=parameters["pilot"],
            ),
            overwrite=parameters["overwrite"],
            min_samples_per_artist=parameters["min_samples_per_artist"],
            require_paired=parameters["require_paired"],
        )
        names = ("push_to_hub", "hub_namespace", "base_model_id", "train_script", "stall_minutes", "wait")
        return cls(config=config, stack=stack, request=request, **{name: parameters[name] for name in names})

    def show(self, *, verbose: bool) -> int:
        """Print the plan, and what would forbid it; write nothing."""
        plan = self._plan(full=False)
        print(report.plan_table(plan))
        if verbose:
            print(report.commands(plan, self.command))
        for problem in self._problems(plan, network=False):
            print(f"warning: the training would be refused: {problem}", file=sys.stderr)
        return 0

    def show_json(self) -> int:
        """Print the plan for programs; write nothing."""
        plan = self._plan(full=False)
        print(json.dumps(report.plan_json(plan, self.command, self._repository), indent=2))
        return 0

    def verify(self, conditions: Sequence[Condition]) -> int:
        """Check all adapters of these conditions in full, print what was found, and return the exit code."""
        request = self.request
        verdicts = verify(request.tree, self.stack.name, conditions, request.selection, self._asked())
        print(report.verdict_table(verdicts))
        return 1 if any(verdict.is_broken for verdict in verdicts) else 0

    def train(self, *, verbose: bool) -> int:
        """Train what the plan says and return the exit code.

        Raises:
            BatchFault: nothing can be trained; nothing was written.
        """
        plan = _without_unreadable(self._plan(full=True))
        problems = self._problems(plan, network=True)
        if problems:
            raise BatchFault(*problems)
        print(report.plan_table(plan), flush=True)
        if verbose:
            print(report.commands(plan, self.command), flush=True)
        step_counts = [self.config.step_count(len(target.images.names)) for target in plan.of(Action.TRAIN)]
        batch = Batch(
            plan=plan,
            executor=LocalExecutor(self.command, 60 * self.stall_minutes),
            tracker=open_tracker(plan.request.tree),
            display=BatchDisplay(len(step_counts), max(step_counts, default=0)),
            step_count=self.config.step_count,
            judge=lambda target: judge_existing(target.output_dir, self._asked(), target.images, full=True),
            wait=self.wait,
        )
        try:
            batch.run()
        except Interrupted:
            print("\ninterrupted; the same command takes up where it stopped", file=sys.stderr)
            raise
        finally:
            batch.display.close()
            print(report.summary(plan, batch.results), flush=True)
        well = {"trained", "skipped"}
        all_well = all(result.outcome in well and not result.owed for result in batch.results)
        return 0 if all_well and not plan.of(Action.BLOCKED) else 1

    def command(self, target: Target) -> list[str]:
        """Return the exact command that trains `target`."""
        words = [*option_words(self.config), f"--stall-minutes={self.stall_minutes:g}"]
        repository = self._repository(target)
        if repository is None:
            words.append("--no-push-to-hub")
        else:
            words += ["--push-to-hub", f"--hub-model-id={repository}"]
            if self.hub_namespace is not None:
                words.append(f"--hub-namespace={self.hub_namespace}")
            if self.base_model_id is not None:
                words.append(f"--base-model-id={self.base_model_id}")
        if self.train_script is not None:
            words.append(f"--train-script={self.train_script}")
        if target.eval_dir is not None:
            words.append(f"--eval-data-dir={target.eval_dir}")
        words += [f"--note={warning}" for warning in target.warnings]
        return self.stack.words(target.images.path, target.output_dir, words)

    @property
    def _uploads(self) -> bool:
        # Only through its options does a stack hear of the Hub.
        return self.push_to_hub and self.stack.takes_options

    def _repository(self, target: Target) -> str | None:
        if not self._uploads:
            return None
        condition = self.request.condition
        return repository_name(condition.protection, condition.countermeasure, target.artist.name)

    def _plan(self, *, full: bool) -> Plan:
        bookmarks = open_tracker(self.request.tree).bookmarks()
        return make_plan(self.request, self._asked(), bookmarks, full=full)

    def _asked(self) -> Asked:
        if self.stack.takes_options:
            return Asked.of(self.config, trainer_identity(self.train_script))
        return Asked(rank=None, recipe=None)

    def _problems(self, plan: Plan, *, network: bool) -> list[str]:
        """Return what forbids the whole batch; nothing when there is nothing to train."""
        # One that another call is training now may be left to us.
        targets = [*plan.of(Action.TRAIN), *plan.of(Action.CLAIMED)]
        if not targets:
            return []
        named = [(str(target.artist), self._repository(target)) for target in plan.targets]
        return [
            *batch_problems(
                self.config if self.stack.takes_options else None,
                self.request.tree.stack_outputs(self.stack.name),
                len(targets),
                uploads=self._uploads,
                network=network,
            ),
            *colliding_names((artist, name) for artist, name in named if name is not None),
        ]


def _without_unreadable(plan: Plan) -> Plan:
    """Decode every image that is to be trained on, and block the artists of those that cannot be read."""
    targets = []
    for target in plan.targets:
        unreadable = unreadable_images(target.images) if target.action is Action.TRAIN else []
        if unreadable:
            target = replace(target, action=Action.BLOCKED, reason="; ".join(unreadable), warnings=())
        targets.append(target)
    return replace(plan, targets=tuple(targets))
