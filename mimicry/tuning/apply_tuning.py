"""Train one adapter per artist for one condition of the study: the orchestrator.

python mimicry/tuning/apply_tuning.py --dry-run
python mimicry/tuning/apply_tuning.py --protection mist --pilot
"""

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import click
from click.core import ParameterSource

from mimicry.common.errors import Problems, UsageError
from mimicry.common.programs import run_command
from mimicry.study.tree import (
    COUNTERMEASURES,
    NONE,
    PROTECTIONS,
    Condition,
    StudyTree,
)
from mimicry.tuning.hub.names import refuse_names
from mimicry.tuning.options.command_line import (
    handed_on_options,
    hyper_parameter_options,
    selection_options,
    take_config,
    tree_options,
)
from mimicry.tuning.options.config import OPTIONS
from mimicry.tuning.orchestrator import Call
from mimicry.tuning.stacks import RUNNER_CONFIG, Stack

# What reaches a stack through {options} only, by parameter.
_HANDED_ON = {option.name: option.flag for option in OPTIONS} | {
    "push_to_hub": "--push-to-hub",
    "hub_namespace": "--hub-namespace",
    "base_model_id": "--base-model-id",
    "train_script": "--train-script",
}

_NOT_WITH_UPLOAD_ONLY = {
    "push_to_hub": "--no-push-to-hub",
    "overwrite": "--overwrite",
    "as_json": "--json",
    "verbose": "--verbose",
    "verify": "--verify",
    "quarantine_unpaired": "--quarantine-unpaired",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@tree_options
@click.option("--protection", default=NONE, help=f"none, {', '.join(PROTECTIONS)}, or a folder's name.")
@click.option(
    "--countermeasure", default=NONE, help=f"none, {', '.join(COUNTERMEASURES)}, or a folder's name."
)
@selection_options
@click.option("--overwrite", is_flag=True, help="Train again where a complete adapter is; it is set aside.")
@click.option("--dry-run", is_flag=True, help="Show the plan; write nothing anywhere.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: the plan as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Show the exact commands.")
@click.option(
    "--min-samples-per-artist",
    type=click.IntRange(min=1),
    default=1,
    help="An artist with fewer images is blocked.",
)
@click.option(
    "--require-paired",
    is_flag=True,
    help="Block an artist whose images are not those of original_art by name.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Train nothing: check every value of each adapter, of all conditions unless one is named, and "
    "decode the images; both whatever earlier calls remember of them.",
)
@click.option(
    "--quarantine-unpaired",
    is_flag=True,
    help="Leave an image that is bad in one condition out of all; without it, its artist is blocked.",
)
@click.option(
    "--upload-only",
    is_flag=True,
    help="Train nothing: upload every complete adapter that is not on the Hub yet.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    help="At the end, wait for artists that other calls are training, and train those that they leave.",
)
@handed_on_options
@hyper_parameter_options
@click.pass_context
def apply_tuning(context: click.Context, /, **parameters: Any) -> int:
    """Train one DreamBooth LoRA adapter for each artist of the study, for one condition.

    The condition, --protection and --countermeasure, says which images are used. Artists whose adapter is
    complete are skipped, so that the same command takes up where it stopped.
    """
    problems = Problems()
    with problems:
        config = take_config(parameters)
    with problems:
        stack = Stack.find(parameters["stack"])
        _refuse_useless_options(context, stack)
    with problems:
        refuse_names({"--hub-namespace": parameters["hub_namespace"]}, parameters["base_model_id"])
    with problems:
        condition = Condition(parameters["protection"], parameters["countermeasure"])
        if not parameters["verify"]:
            StudyTree(parameters["data_root"]).source(condition)
    problems.raise_any()
    call = Call.make(config, stack, condition, parameters)
    if parameters["verify"]:
        named = any(_given(context, name) for name in ("protection", "countermeasure"))
        return call.verify(condition if named else None)
    if parameters["upload_only"]:
        return call.show_uploads() if parameters["dry_run"] else call.upload()
    if not parameters["dry_run"]:
        return call.train(verbose=parameters["verbose"])
    return call.show_json() if parameters["as_json"] else call.show(verbose=parameters["verbose"])


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _refuse_useless_options(context: click.Context, stack: Stack) -> None:
    """Refuse options that would have no effect, which nobody types on purpose."""
    given = [
        flag
        for name, flag in _HANDED_ON.items()
        if _given(context, name) and (name, context.params[name]) != ("push_to_hub", False)
    ]
    problems = []
    if context.params["as_json"] and (context.params["verify"] or not context.params["dry_run"]):
        problems.append("--json shows a plan and goes with --dry-run alone; type --dry-run --json")
    if context.params["verify"] and context.params["overwrite"]:
        problems.append("--verify trains nothing, so --overwrite would have no effect; leave one of them out")
    if context.params["quarantine_unpaired"] and (context.params["dry_run"] or context.params["verify"]):
        problems.append(
            "--quarantine-unpaired goes with training: it decodes the images and records which are left out; "
            "type --verify alone to see which are bad"
        )
    if context.params["upload_only"]:
        problems += [
            f"--upload-only uploads and trains nothing, which does not go with {flag}; leave one of them out"
            for name, flag in _NOT_WITH_UPLOAD_ONLY.items()
            if context.params[name] == (name != "push_to_hub")
        ]
    if given and not stack.takes_options and not context.params["upload_only"]:
        problems.append(
            f"stack {stack.name} takes no options, so {', '.join(given)} would have no effect; leave it out, "
            f"or put {{options}} into the command of {stack.folder / RUNNER_CONFIG}"
        )
    if problems:
        raise UsageError(*problems)


def main() -> int:
    """Run the program and return its exit code."""
    return run_command(apply_tuning)


if __name__ == "__main__":
    sys.exit(main())
