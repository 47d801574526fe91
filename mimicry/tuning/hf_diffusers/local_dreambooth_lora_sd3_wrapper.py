"""Train one artist: what apply_tuning runs for each, and a program for users too.

python local_dreambooth_lora_sd3_wrapper.py --input-dir IMAGES --output-dir ADAPTER [options]
"""

import os
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import click

from mimicry.common.processes import run_command, stop_with_parent
from mimicry.common.text import shell_line
from mimicry.tuning.hf_diffusers.one_artist import caller, parse_request, run_job
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
    return run_job(job, upload, caller(os.environ), overwrite=overwrite)


def main() -> int:
    stop_with_parent()
    return run_command(wrapper)


if __name__ == "__main__":
    sys.exit(main())
