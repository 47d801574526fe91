"""Train one adapter per artist for one condition of the study: the orchestrator.

python mimicry/tuning/apply_tuning.py --dry-run
python mimicry/tuning/apply_tuning.py --protection mist --pilot
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import click
from click.core import ParameterSource

from mimicry.common.errors import Problems, UsageError
from mimicry.common.processes import run_command
from mimicry.common.text import printable
from mimicry.study import COUNTERMEASURES, NONE, PROTECTIONS, ChosenConditions, StudyTree
from mimicry.tuning.execution.engines import engine_options, make_executor
from mimicry.tuning.hub.names import refuse_names
from mimicry.tuning.hub.upload import HubOptions
from mimicry.tuning.options.click_options import (
    CALL,
    CONDITIONS,
    STUDY,
    TypedCommand,
    handed_on_options,
    hyper_parameter_options,
    option,
    options,
    program,
    selection_of,
    selection_options,
    take_config,
    tree_options,
)
from mimicry.tuning.options.config import OPTIONS
from mimicry.tuning.options.study_defaults import series_of_call, study_file_of
from mimicry.tuning.options.study_file import MOST_REPLICATES, ORDERS, Series
from mimicry.tuning.orchestrator import Orchestrator
from mimicry.tuning.planning import Request
from mimicry.tuning.stacks import RUNNER_CONFIG, Stack

_CONDITION_PARAMETERS = ("protections", "countermeasures")
# What reaches a stack through {options} only, by parameter.
_HANDED_ON = {declared.name: declared.flag for declared in OPTIONS} | {
    "push_to_hub": "--push-to-hub",
    "hub_namespace": "--hub-namespace",
    "base_model_id": "--base-model-id",
    "train_script": "--train-script",
}

_condition_options = options(
    option(
        "--protection",
        "protections",
        topic=CONDITIONS,
        from_file=True,
        multiple=True,
        default=(NONE,),
        help=f"none, {', '.join(PROTECTIONS)}, a folder's name, or all; may be repeated.",
    ),
    option(
        "--countermeasure",
        "countermeasures",
        topic=CONDITIONS,
        from_file=True,
        multiple=True,
        default=(NONE,),
        help=f"none, {', '.join(COUNTERMEASURES)}, a folder's name, or all; may be repeated.",
    ),
    option(
        "--replicates",
        topic=STUDY,
        from_file=True,
        type=click.IntRange(1, MOST_REPLICATES),
        default=1,
        help="Train each adapter so often, with the seeds --seed, --seed + 1, and so on: the first at its "
        "usual place, the others as variants seed-N.",
    ),
    option(
        "--order",
        topic=CONDITIONS,
        from_file=True,
        type=click.Choice(ORDERS),
        default="artist",
        help="Train all conditions of an artist before the next artist, or all artists of a condition.",
    ),
)
_call_options = options(
    option("--dry-run", topic=CALL, is_flag=True, help="Show the plan; write nothing anywhere."),
    option(
        "--full",
        topic=CALL,
        is_flag=True,
        help="With --dry-run: decode the images and check all weights too, as a training does first.",
    ),
    option("--json", "as_json", topic=CALL, is_flag=True, help="With --dry-run: the plan as JSON."),
    option(
        "-v", "--verbose", topic=CALL, is_flag=True, help="Show the exact commands, and all lists of images."
    ),
    option(
        "--overwrite",
        topic=CALL,
        is_flag=True,
        help="Train again where a complete adapter is; it is set aside when its turn comes.",
    ),
    option(
        "--retrain-stale",
        topic=CALL,
        is_flag=True,
        help="Train again where an adapter has another recipe or other images; it is set aside when its turn "
        "comes.",
    ),
    option(
        "--allow-mixed-recipes",
        topic=CALL,
        is_flag=True,
        help="Train although the study's adapters have another recipe; it is recorded and marked everywhere.",
    ),
    option(
        "--wait/--no-wait",
        topic=CALL,
        default=True,
        help="At the end, wait for artists that other calls are training, and train those that they leave; "
        "with --engine slurm, wait for the jobs.",
    ),
    option(
        "--gpus",
        topic=CALL,
        metavar="all|0,2|none",
        help="Train on these GPUs side by side, each training on its own, or on so many as --num-processes "
        "says. By default on all.",
    ),
    option(
        "--parallel",
        topic=CALL,
        type=click.IntRange(1, 64),
        default=1,
        help="Trainings at a time on each GPU, or on the processors of a machine without one.",
    ),
    option(
        "--min-samples-per-artist",
        topic=CALL,
        from_file=True,
        type=click.IntRange(min=1),
        default=1,
        help="An artist with fewer images is blocked.",
    ),
    option(
        "--allow-unpaired",
        topic=CALL,
        is_flag=True,
        help="Train an artist whose images do not pair with those of original_art, by name or by their look; "
        "the adapter is marked as unpaired for good.",
    ),
    option(
        "--quarantine-unpaired",
        topic=CALL,
        is_flag=True,
        help="Leave an image that cannot be read in one condition out of all, and record it in "
        "progress/quarantine.json; without it, its artist is blocked.",
    ),
)


@program()
@tree_options
@_condition_options
@selection_options
@_call_options
@engine_options
@handed_on_options
@hyper_parameter_options
@click.pass_context
def apply_tuning(context: click.Context, /, **parameters: Any) -> int:
    """Train one DreamBooth LoRA adapter for each artist and condition of the study.

    A condition, --protection and --countermeasure, says which images are used; several of each make all
    pairs. Adapters that are complete are skipped, so that the same command takes up where it stopped.
    """
    problems = Problems()
    with problems:
        series = series_of_call(context, take_config(parameters))
        with problems:
            processes = max(one.config.num_processes for one in series)
            executor = make_executor(context, processes)
        for one in series:
            one.config.refuse_train_script(parameters["train_script"])
    with problems:
        stack = Stack.find(parameters["stack"])
        _refuse_useless_options(context, stack)
    with problems:
        refuse_names({"--hub-namespace": parameters["hub_namespace"]}, parameters["base_model_id"])
    with problems:
        conditions = _conditions(context)
    problems.raise_any()
    orchestrator = Orchestrator(
        requests=_requests(series, stack, conditions, parameters),
        absent=conditions.absent,
        by_condition=parameters["order"] == "condition",
        study_file=study_file_of(context).path,
        typed=TypedCommand.from_context(context),
        quarantine_unpaired=parameters["quarantine_unpaired"],
        wait=parameters["wait"],
        executor=executor,
    )
    verbose, full = parameters["verbose"], parameters["full"]
    if parameters["as_json"]:
        return orchestrator.show_json(full=full)
    if orchestrator.study_file is not None:
        print(printable(f"study: {orchestrator.study_file}"), flush=True)
    if not parameters["dry_run"]:
        return orchestrator.train(verbose=verbose)
    return orchestrator.show(verbose=verbose, full=full)


def _conditions(context: click.Context) -> ChosenConditions:
    """Return the conditions that were asked for."""
    names = [context.params[name] for name in _CONDITION_PARAMETERS]
    # A study is written down before all of its images are made.
    written = any(
        context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP for name in _CONDITION_PARAMETERS
    )
    chosen = ChosenConditions.choose(StudyTree(context.params["data_root"]), *names, needed=not written)
    if not chosen.present:
        raise UsageError(*(reason for _, reason in chosen.absent))
    return chosen


def _requests(
    series: Sequence[Series], stack: Stack, conditions: ChosenConditions, parameters: dict[str, Any]
) -> tuple[Request, ...]:
    hub = HubOptions.from_parameters(parameters)
    return tuple(
        Request(
            tree=StudyTree(parameters["data_root"]),
            stack=stack,
            config=one.config,
            condition=condition,
            variant=one.variant,
            needs_images=conditions.needs(condition),
            selection=selection_of(parameters),
            overwrite=parameters["overwrite"],
            retrain_stale=parameters["retrain_stale"],
            allow_mixed_recipes=parameters["allow_mixed_recipes"],
            min_samples_per_artist=parameters["min_samples_per_artist"],
            allow_unpaired=parameters["allow_unpaired"],
            hub=hub if parameters["push_to_hub"] else None,
            train_script=parameters["train_script"],
            stall_minutes=parameters["stall_minutes"],
        )
        for one in series
        for condition in conditions.present
    )


def _refuse_useless_options(context: click.Context, stack: Stack) -> None:
    given = [
        flag
        for name, flag in _HANDED_ON.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        and (name, context.params[name]) != ("push_to_hub", False)
    ]
    problems = []
    if context.params["as_json"] and not context.params["dry_run"]:
        problems.append("--json shows a plan and goes with --dry-run alone; type --dry-run --json")
    if context.params["full"] and not context.params["dry_run"]:
        problems.append(
            "--full looks at everything without training and goes with --dry-run alone; type --dry-run --full"
        )
    if context.params["quarantine_unpaired"] and context.params["dry_run"]:
        problems.append(
            "--quarantine-unpaired goes with training, and not with --dry-run: it records in "
            "progress/quarantine.json which images are left out; type mimicry verify to see which are bad"
        )
    study_file = study_file_of(context)
    if study_file.recipe and not stack.takes_options:
        problems.append(
            f"{study_file.path}: stack {stack.name} takes no options, so [recipe] would have no "
            f"effect; remove it"
        )
    if given and not stack.takes_options:
        them = "it" if len(given) == 1 else "them"
        problems.append(
            f"stack {stack.name} takes no options, so {', '.join(given)} would have no effect; leave {them} "
            f"out, or put {{options}} into the command of {stack.folder / RUNNER_CONFIG}"
        )
    if problems:
        raise UsageError(*problems)


def main() -> int:
    """Run the program and return its exit code."""
    return run_command(apply_tuning)


if __name__ == "__main__":
    sys.exit(main())
