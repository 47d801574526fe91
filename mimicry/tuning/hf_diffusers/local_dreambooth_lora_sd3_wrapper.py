"""Train one artist: what apply_tuning runs for each, and a program for users too.

python local_dreambooth_lora_sd3_wrapper.py --input-dir IMAGES --output-dir ADAPTER [options]
"""

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import click

from mimicry.common.claims import Claim
from mimicry.common.processes import NOT_AS_ASKED, has_parent, run_command, stop_with_parent
from mimicry.common.text import printable, shell_line
from mimicry.study import State
from mimicry.tuning.adapters import AdapterState, judge_adapter
from mimicry.tuning.hf_diffusers.artist_job import ArtistJob
from mimicry.tuning.hf_diffusers.artist_request import parse_request, refuse_faults, usable_data
from mimicry.tuning.hf_diffusers.one_artist import train_artist
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.hub.upload import upload_and_record
from mimicry.tuning.options.click_options import handed_on_options, hyper_parameter_options
from mimicry.tuning.options.flags import input_options


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@input_options
@click.option("--overwrite", is_flag=True, help="Train again where a complete adapter is.")
@click.option("--dry-run", is_flag=True, help="Show the exact command, and do nothing.")
@click.option("--hub-model-id", help="Name of the repository; by default made from the output folder.")
@handed_on_options
@hyper_parameter_options
def wrapper(overwrite: bool, dry_run: bool, **parameters: Any) -> int:
    """Train the adapter of one artist and upload it to the Hub as a private repository.

    A complete adapter is left as it is, unless --overwrite is given.
    """
    job, upload = parse_request(parameters)
    if dry_run:
        print(shell_line(job.command()))
        return 0
    images, captions = usable_data(job)
    refuse_faults(job, upload)
    spec = TRAITS.adapter_spec(job.config, job.script.identity)
    with Claim.take(job.inputs.output_dir) as claim:
        found = judge_adapter(job.folder, spec, images, captions=captions, full=True)
        kept = found.state in (State.COMPLETE, State.STALE) and not overwrite
        if kept:
            _report_kept(job, found)
        else:
            _train(job, found, claim)
        if upload is not None:
            print(f"uploaded: {upload_and_record(upload).url}")
    return NOT_AS_ASKED if kept and found.state is State.STALE else 0


def _train(job: ArtistJob, found: AdapterState, claim: Claim) -> None:
    # apply_tuning has shown those of the stack.
    stack_warnings = [] if has_parent() else TRAITS.warnings(job.config)
    for warning in (*job.script.warnings(job.config), *stack_warnings):
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if found.state is not State.PENDING:
        job.folder.set_aside(found.state)
    train_artist(job, claim)
    print(printable(f"complete: {job.inputs.output_dir}"))


def _report_kept(job: ArtistJob, found: AdapterState) -> None:
    reason = f" ({found.reason})" if found.reason else ""
    print(printable(f"{found.state}: {job.inputs.output_dir}{reason}"))
    if found.state is State.STALE:
        print("it is kept; type --overwrite to train it again")


def main() -> int:
    """Run the program and return its exit code."""
    stop_with_parent()
    return run_command(wrapper)


if __name__ == "__main__":
    sys.exit(main())
