"""Train one artist: the link between apply_tuning and the trainer, and a program of its own.

python local_dreambooth_lora_sd3_wrapper.py --input-dir IMAGES --output-dir ADAPTER [options]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import click

from mimicry.common.children import has_parent, stop_with_parent
from mimicry.common.claims import Claim
from mimicry.common.errors import BatchFault, MimicryError, Problems, UsageError
from mimicry.common.programs import run_command
from mimicry.common.text import printable, shell_line
from mimicry.study.captions import Captions
from mimicry.study.image_checks import bad_images
from mimicry.study.images import ImageFolder
from mimicry.study.states import State
from mimicry.study.tree import AdapterId
from mimicry.tuning.adapters.state import AdapterState, judge_adapter
from mimicry.tuning.hf_diffusers.launch import TrainScript
from mimicry.tuning.hf_diffusers.one_artist import ArtistJob, train_artist
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.hub.job import HubOptions, UploadJob
from mimicry.tuning.hub.names import refuse_names
from mimicry.tuning.hub.preflight import hub_problems
from mimicry.tuning.hub.upload import upload_and_record
from mimicry.tuning.options.click_options import handed_on_options, hyper_parameter_options, take_config
from mimicry.tuning.planning.preflight import batch_problems


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--input-dir", type=click.Path(path_type=Path), required=True, help="Folder of the images.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True, help="Folder of the adapter.")
@click.option(
    "--eval-data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the images to measure the loss on, before and after: the original art.",
)
@click.option(
    "--base-samples-dir",
    type=click.Path(path_type=Path),
    help="Folder of what the base model draws of validation prompts, for many artists.",
)
@click.option(
    "--caption-data-dir",
    type=click.Path(path_type=Path),
    help="With --captions: folder of the original art, whose captions hold for images without any.",
)
@click.option("--overwrite", is_flag=True, help="Train again where a complete adapter is.")
@click.option("--dry-run", is_flag=True, help="Show the exact command, and do nothing.")
@click.option("--hub-model-id", help="Name of the repository; by default made from the output folder.")
@click.option("--leave-out", multiple=True, help="Leave out the images of this stem; may be repeated.")
@click.option("--note", multiple=True, help="A warning to keep in training_run.json; may be repeated.")
@handed_on_options
@hyper_parameter_options
def wrapper(input_dir: Path, output_dir: Path, overwrite: bool, dry_run: bool, **parameters: Any) -> int:
    """Train the adapter of one artist and upload it to the Hub as a private repository.

    A complete adapter is left as it is, unless --overwrite is given.
    """
    left_out = parameters["leave_out"]
    images = ImageFolder.read(input_dir).without(left_out)
    problems = Problems()
    with problems:
        config = take_config(parameters)
    with problems:
        script = _script(parameters["train_script"], left_out)
    with problems:
        upload = _upload_job(output_dir, parameters)
    with problems:
        names = {"--hub-model-id": parameters["hub_model_id"], "--hub-namespace": parameters["hub_namespace"]}
        refuse_names(names, parameters["base_model_id"])
    with problems:
        _refuse_names("--input-dir", images)
    eval_dir, caption_dir = parameters["eval_data_dir"], parameters["caption_data_dir"]
    for option, folder in (("--eval-data-dir", eval_dir), ("--caption-data-dir", caption_dir)):
        with problems:
            if folder is not None:
                _refuse_names(option, ImageFolder.read(folder).without(left_out))
    problems.raise_any()
    original = None if caption_dir is None else ImageFolder.read(caption_dir).without(left_out)
    captions = Captions.read(images, original) if config.captions else None
    job = ArtistJob(
        config=config,
        input_dir=input_dir,
        output_dir=output_dir,
        script=script,
        notes=parameters["note"],
        leave_out=left_out,
        stall_seconds=60 * parameters["stall_minutes"],
        eval_dir=eval_dir,
        base_samples_dir=parameters["base_samples_dir"],
        caption_dir=caption_dir,
    )
    if dry_run:
        print(shell_line(job.command()))
        return 0
    bad = [*(image.problem for image in bad_images([images])), *(captions.problems if captions else ())]
    if bad:
        raise MimicryError(*bad)
    faults = batch_problems(TRAITS, config, output_dir, adapter_count=1, uploads=upload is not None)
    if (
        upload is not None and not faults and not has_parent()
    ):  # apply_tuning has asked for all of its artists
        faults = hub_problems([(upload, input_dir)])
    if faults:
        raise BatchFault(*faults)
    spec = TRAITS.adapter_spec(config, script.identity)
    with Claim.take(output_dir) as claim:
        existing = judge_adapter(job.folder, spec, images, captions=captions, full=True)
        if existing.state in (State.COMPLETE, State.STALE) and not overwrite:
            _report_kept(output_dir, existing)
        else:
            for warning in script.warnings(config):
                print(f"warning: {printable(warning)}", file=sys.stderr)
            if existing.state is not State.PENDING:
                job.folder.set_aside(existing.state)
            train_artist(job, claim)
            print(printable(f"complete: {output_dir}"))
        if upload is not None:
            print(f"uploaded: {upload_and_record(upload).url}")
    return 0


def _script(path: Path | None, left_out: Sequence[str]) -> TrainScript:
    script = TrainScript.own() if path is None else TrainScript.read(path)
    if left_out and not script.is_own:
        raise UsageError(
            f"--leave-out {left_out[0]}: {script.path.name} takes every image of the folder; move the image "
            f"away, or train without --train-script"
        )
    return script


def _refuse_names(option: str, images: ImageFolder) -> None:
    problem = images.problem()
    if problem is not None:
        raise UsageError(f"{option}: {problem}")


def _upload_job(output_dir: Path, parameters: dict[str, Any]) -> UploadJob | None:
    """Return where the adapter goes on the Hub; None when it stays here."""
    if not parameters["push_to_hub"]:
        return None
    hub = HubOptions(namespace=parameters["hub_namespace"], base_model_id=parameters["base_model_id"])
    name, adapter = parameters["hub_model_id"], AdapterId.parse(output_dir)
    if adapter is not None:
        return UploadJob.of(adapter, output_dir, TRAITS.hub_prefix, hub, name)
    if name is None:
        raise UsageError(
            f"--output-dir {output_dir} is not .../PROTECTION__COUNTERMEASURE/SPLIT/STYLE/ARTIST, which "
            f"names the repository on the Hub; type --hub-model-id NAME or --no-push-to-hub"
        )
    return UploadJob(
        folder=output_dir,
        repository=name,
        protection="unknown",
        countermeasure="unknown",
        artist=output_dir.absolute().name,
        namespace=hub.namespace,
        base_model_id=hub.base_model_id,
    )


def _report_kept(output_dir: Path, existing: AdapterState) -> None:
    reason = f" ({existing.reason})" if existing.reason else ""
    print(printable(f"{existing.state.value}: {output_dir}{reason}"))
    if existing.state is State.STALE:
        print("it is kept; type --overwrite to train it again")


def main() -> int:
    """Run the program and return its exit code."""
    stop_with_parent()
    return run_command(wrapper)


if __name__ == "__main__":
    sys.exit(main())
