"""One call of apply_tuning, from the options to the exit code."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.children import Interrupted
from mimicry.common.errors import BatchFault
from mimicry.study.captions import Captions
from mimicry.study.images import ImageFolder
from mimicry.study.tree import Condition, StudyTree
from mimicry.tuning.adapters.recipe import trainer_identity
from mimicry.tuning.adapters.state import Asked, Existing, judge_existing
from mimicry.tuning.execution.batch import Batch, LocalExecutor
from mimicry.tuning.execution.bookmarks import open_tracker
from mimicry.tuning.execution.pending_uploads import find_debts, pay
from mimicry.tuning.hub.job import UploadJob
from mimicry.tuning.hub.names import colliding_names, repository_name
from mimicry.tuning.hub.preflight import hub_problems
from mimicry.tuning.hub.token import token_problems
from mimicry.tuning.options.command_line import option_words, selection_of
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.planning.image_check import check_images, quarantine_bad_images
from mimicry.tuning.planning.plan import Action, Plan, Request, Target, make_plan
from mimicry.tuning.planning.preflight import batch_problems
from mimicry.tuning.reports import tables
from mimicry.tuning.reports.progress import BatchDisplay
from mimicry.tuning.reports.verify import conditions_on_disk, image_problems, verify
from mimicry.tuning.stacks import Stack

# The parameters of the command that are fields of a call as they are.
_AS_TYPED = (
    "push_to_hub",
    "hub_namespace",
    "base_model_id",
    "train_script",
    "stall_minutes",
    "quarantine_unpaired",
    "wait",
)


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
    quarantine_unpaired: bool
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
            selection=selection_of(parameters),
            overwrite=parameters["overwrite"],
            min_samples_per_artist=parameters["min_samples_per_artist"],
            require_paired=parameters["require_paired"],
            captions=config.captions,
        )
        return cls(
            config=config, stack=stack, request=request, **{name: parameters[name] for name in _AS_TYPED}
        )

    def show(self, *, verbose: bool) -> int:
        """Print the plan, and what would forbid it; write nothing."""
        plan = self._plan(full=False)
        print(tables.plan_table(plan))
        if verbose:
            print(tables.commands(plan, self.command))
        for problem in self._problems(plan, network=False):
            print(f"warning: the training would be refused: {problem}", file=sys.stderr)
        return 0

    def verify(self, condition: Condition | None) -> int:
        """Check adapters and images in full, print what was found, and return the exit code; write nothing.

        Args:
            condition: None for all that there are.
        """
        request = self.request
        conditions = conditions_on_disk(request.tree, self.stack.name) if condition is None else [condition]
        verdicts = verify(
            request.tree,
            self.stack.name,
            conditions,
            request.selection,
            self._asked(),
            captioned=request.captions,
        )
        problems = image_problems(request.tree, condition, request.selection)
        print(tables.verdict_table(verdicts, problems))
        return 1 if problems or any(verdict.is_broken for verdict in verdicts) else 0

    def show_json(self) -> int:
        """Print the plan for programs; write nothing."""
        plan = self._plan(full=False)
        print(json.dumps(tables.plan_json(plan, self.command, self._repository), indent=2))
        return 0

    def train(self, *, verbose: bool) -> int:
        """Train what the plan says and return the exit code.

        Raises:
            BatchFault: nothing can be trained; nothing was written but what was put into quarantine.
        """
        plan = self._plan(full=True)
        if self.quarantine_unpaired and quarantine_bad_images(plan, print):
            plan = self._plan(full=True)
        plan = check_images(plan)
        problems = self._problems(plan, network=True)
        if problems:
            raise BatchFault(*problems)
        print(tables.plan_table(plan), flush=True)
        if verbose:
            print(tables.commands(plan, self.command), flush=True)
        step_counts = [self.config.step_count(len(target.images.names)) for target in plan.of(Action.TRAIN)]
        batch = Batch(
            plan=plan,
            executor=LocalExecutor(self.command, 60 * self.stall_minutes),
            tracker=open_tracker(plan.request.tree),
            display=BatchDisplay(len(step_counts), max(step_counts, default=0)),
            step_count=self.config.step_count,
            judge=self._judge,
            wait=self.wait,
        )
        try:
            if self._uploads:
                debts = find_debts(plan, self._upload_job, every=False)
                batch.results += pay(plan, debts, batch.tracker, batch.display.say)
            batch.run()
        except Interrupted:
            print("\ninterrupted; the same command takes up where it stopped", file=sys.stderr)
            raise
        finally:
            batch.display.close()
            print(tables.summary(plan, batch.results), flush=True)
        well = {"trained", "skipped", "uploaded"}
        all_well = all(result.outcome in well and not result.owed for result in batch.results)
        return 0 if all_well and not plan.of(Action.BLOCKED) else 1

    def show_uploads(self) -> int:
        """Print what would be uploaded; write nothing, ask nobody."""
        print(
            tables.upload_table(find_debts(self._plan(full=False), self._upload_job, every=True, full=False))
        )
        return 0

    def upload(self) -> int:
        """Upload every whole adapter that is not on the Hub yet, train nothing, and return the exit code.

        Raises:
            BatchFault: nothing can be uploaded.
        """
        plan = self._plan(full=True)
        debts = find_debts(plan, self._upload_job, every=True)
        owed = [(str(debt.target.artist), debt.job.repository) for debt in debts if debt.owed]
        problems = [*(token_problems() if owed else []), *colliding_names(owed)]
        if problems:
            raise BatchFault(*problems)
        print(tables.upload_table(debts), flush=True)
        results = pay(plan, debts, open_tracker(plan.request.tree), print)
        print(tables.upload_summary(results), flush=True)
        return 0 if all(result.outcome == "uploaded" for result in results) else 1

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
        if self.config.validation_prompt is not None:
            words.append(f"--base-samples-dir={self.request.tree.base_samples(self.stack.name)}")
        if target.caption_dir is not None:
            words.append(f"--caption-data-dir={target.caption_dir}")
        words += [f"--leave-out={stem}" for stem in target.left_out]
        words += [f"--note={warning}" for warning in target.warnings]
        return self.stack.words(target.images.path, target.output_dir, words)

    @property
    def _uploads(self) -> bool:
        # Only through its options does a stack hear of the Hub.
        return self.push_to_hub and self.stack.takes_options

    def _repository(self, target: Target) -> str | None:
        return self._upload_job(target).repository if self._uploads else None

    def _upload_job(self, target: Target) -> UploadJob:
        condition, artist = self.request.condition, target.artist
        return UploadJob(
            folder=target.output_dir,
            repository=repository_name(condition.protection, condition.countermeasure, artist.name),
            protection=condition.protection,
            countermeasure=condition.countermeasure,
            artist=artist.name,
            split=artist.split,
            style=artist.style,
            namespace=self.hub_namespace,
            base_model_id=self.base_model_id,
        )

    def _plan(self, *, full: bool) -> Plan:
        bookmarks = open_tracker(self.request.tree).bookmarks()
        plan = make_plan(self.request, self._asked(), bookmarks, full=full)
        return plan if self.stack.takes_options else _without_left_out(plan)

    def _asked(self) -> Asked:
        if self.stack.takes_options:
            return Asked.of(self.config, trainer_identity(self.train_script))
        return Asked(rank=None, recipe=None)

    def _judge(self, target: Target) -> Existing:
        """Look again at what lies in the folder of a target, in full."""
        captions = None
        if self.request.captions:
            original = None if target.caption_dir is None else ImageFolder.read(target.caption_dir)
            captions = Captions.read(
                target.images, None if original is None else original.without(target.left_out)
            )
        return judge_existing(target.output_dir, self._asked(), target.images, captions=captions, full=True)

    def _problems(self, plan: Plan, *, network: bool) -> list[str]:
        """Return what forbids the whole batch; nothing when there is nothing to train."""
        # One that another call is training now may be left to us.
        targets = [*plan.of(Action.TRAIN), *plan.of(Action.CLAIMED)]
        if not targets:
            return []
        uploads = [(self._upload_job(target), target.images.path) for target in targets]
        ask_hub = network and self._uploads and not token_problems()
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
            *(hub_problems(uploads) if ask_hub else []),
        ]


def _without_left_out(plan: Plan) -> Plan:
    """Block the artists of whose images some are left out, which a stack without options does not hear of."""
    reason = (
        "some of its images are left out of all conditions, which cannot be told to a stack without options"
    )
    targets = [
        replace(target, action=Action.BLOCKED, reason=reason, warnings=())
        if target.left_out and target.action is Action.TRAIN
        else target
        for target in plan.targets
    ]
    return replace(plan, targets=tuple(targets))
