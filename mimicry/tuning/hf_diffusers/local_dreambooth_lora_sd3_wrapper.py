"""Train one artist: the link between apply_tuning and the trainer, and a program of its own.

python local_dreambooth_lora_sd3_wrapper.py --input-dir IMAGES --output-dir ADAPTER [options]
"""

import shlex
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import click

from mimicry.common.children import stop_with_parent
from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault, MimicryError, Problems, UsageError
from mimicry.common.images import ImageFolder, unreadable_images
from mimicry.common.programs import run_command
from mimicry.common.study_tree import parse_output_dir
from mimicry.tuning.adapter import set_adapter_aside
from mimicry.tuning.existing import Asked, Existing, State, judge_existing
from mimicry.tuning.hf_diffusers.launch import TrainScript
from mimicry.tuning.hf_diffusers.one_artist import ArtistJob, train_artist
from mimicry.tuning.hub import UploadJob, repository_name
from mimicry.tuning.options import handed_on_options, hyper_parameter_options, take_config
from mimicry.tuning.preflight import batch_problems
from mimicry.tuning.publishing import upload_and_record


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--input-dir", type=click.Path(path_type=Path), required=True, help="Folder of the images.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="Folder of the adapter.")
@click.option(
    "--eval-data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the images to measure the loss on, before and after: the original art.",
)
@click.option("--overwrite", is_flag=True, help="Train again where a complete adapter is.")
@click.option("--dry-run", is_flag=True, help="Show the exact command, and do nothing.")
@click.option("--hub-model-id", help="Name of the repository; by default made from the output folder.")
@click.option("--note", multiple=True, help="A warning to keep in training_run.json; may be repeated.")
@handed_on_options
@hyper_parameter_options
def wrapper(input_dir: Path, output_dir: Path, overwrite: bool, dry_run: bool, **parameters: Any) -> int:
    """Train the adapter of one artist and upload it to the Hub as a private repository.

    A complete adapter is left as it is, unless --overwrite is given.
    """
    images = ImageFolder.read(input_dir)
    problems = Problems()
    with problems:
        config = take_config(parameters)
    with problems:
        script = _script(parameters["train_script"])
    with problems:
        upload = _upload_job(output_dir, parameters)
    with problems:
        _refuse_names("--input-dir", images)
    eval_dir = parameters["eval_data_dir"]
    with problems:
        if eval_dir is not None:
            _refuse_names("--eval-data-dir", ImageFolder.read(eval_dir))
    problems.raise_any()
    job = ArtistJob(
        config=config,
        input_dir=input_dir,
        output_dir=output_dir,
        script=script,
        notes=parameters["note"],
        stall_seconds=60 * parameters["stall_minutes"],
        eval_dir=eval_dir,
    )
    if dry_run:
        print(shlex.join(job.command()))
        return 0
    unreadable = unreadable_images(images)
    if unreadable:
        raise MimicryError(*unreadable)
    faults = batch_problems(config, output_dir, artist_count=1, uploads=upload is not None)
    if faults:
        raise BatchFault(*faults)
    with Claim.take(output_dir) as claim:
        existing = judge_existing(output_dir, Asked.of(config, script.identity), images, full=True)
        if existing.state in (State.COMPLETE, State.STALE) and not overwrite:
            _report_kept(output_dir, existing)
        else:
            for warning in script.warnings(config):
                print(f"warning: {warning}", file=sys.stderr)
            if existing.state is not State.ABSENT:
                set_adapter_aside(output_dir, existing.state.value)
            train_artist(job, claim)
            print(f"complete: {output_dir}")
        if upload is not None:
            print(f"uploaded: {upload_and_record(upload).url}")
    return 0


def _script(path: Path | None) -> TrainScript:
    return TrainScript.own() if path is None else TrainScript.read(path)


def _refuse_names(option: str, images: ImageFolder) -> None:
    problem = images.problem()
    if problem is not None:
        raise UsageError(f"{option}: {problem}")


def _upload_job(output_dir: Path, parameters: dict[str, Any]) -> UploadJob | None:
    """Return where the adapter goes on the Hub; None when it stays here."""
    if not parameters["push_to_hub"]:
        return None
    meaning = parse_output_dir(output_dir)
    if meaning is None and parameters["hub_model_id"] is None:
        raise UsageError(
            f"--output-dir {output_dir} is no .../PROTECTION__COUNTERMEASURE/SPLIT/STYLE/ARTIST, which names "
            f"the repository on the Hub; type --hub-model-id NAME or --no-push-to-hub"
        )
    protection, countermeasure, artist = "unknown", "unknown", output_dir.absolute().name
    if meaning is not None:
        protection, countermeasure = meaning[0].protection, meaning[0].countermeasure
        artist = meaning[1].name
    return UploadJob(
        folder=output_dir,
        repository=parameters["hub_model_id"] or repository_name(protection, countermeasure, artist),
        protection=protection,
        countermeasure=countermeasure,
        artist=artist,
        namespace=parameters["hub_namespace"],
        base_model_id=parameters["base_model_id"],
    )


def _report_kept(output_dir: Path, existing: Existing) -> None:
    print(f"{existing.state.value}: {output_dir}" + (f" ({existing.reason})" if existing.reason else ""))
    if existing.state is State.STALE:
        print("it is kept; type --overwrite to train it again")


def main() -> int:
    """Run the program and return its exit code."""
    stop_with_parent()
    return run_command(wrapper)


if __name__ == "__main__":
    sys.exit(main())
