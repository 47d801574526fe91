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
from mimicry.study.image_checks import bad_images
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
from mimicry.tuning.options.inputs import TrainingInputs, input_options
from mimicry.tuning.planning.preflight import batch_problems


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
    job, upload = _parse(parameters)
    if dry_run:
        print(shell_line(job.command()))
        return 0
    images = job.inputs.read_images()
    captions = job.inputs.read_captions() if job.config.captions else None
    problems = [*(image.problem for image in bad_images([images])), *(captions.problems if captions else ())]
    if problems:
        raise MimicryError(*problems)
    _refuse_faults(job, upload)
    spec = TRAITS.adapter_spec(job.config, job.script.identity)
    with Claim.take(job.inputs.output_dir) as claim:
        found = judge_adapter(job.folder, spec, images, captions=captions, full=True)
        if found.state in (State.COMPLETE, State.STALE) and not overwrite:
            _report_kept(job, found)
        else:
            _train(job, found, claim)
        if upload is not None:
            print(f"uploaded: {upload_and_record(upload).url}")
    return 0


def _parse(parameters: dict[str, Any]) -> tuple[ArtistJob, UploadJob | None]:
    """Return the job that the command's parameters ask for, and where its adapter goes on the Hub.

    Raises:
        UsageError: all that is wrong with them, and with the names of the images.
    """
    inputs = TrainingInputs.take(parameters)
    problems = Problems()
    with problems:
        config = take_config(parameters)
    with problems:
        script = _script(parameters["train_script"], inputs.leave_out)
    with problems:
        upload = _upload_job(inputs.output_dir, parameters)
    with problems:
        names = {"--hub-model-id": parameters["hub_model_id"], "--hub-namespace": parameters["hub_namespace"]}
        refuse_names(names, parameters["base_model_id"])
    for option, images in (
        ("--input-dir", inputs.read_images()),
        ("--eval-data-dir", inputs.read_eval_images()),
        ("--caption-data-dir", inputs.read_caption_images()),
    ):
        with problems:
            problem = None if images is None else images.problem()
            if problem is not None:
                raise UsageError(f"{option}: {problem}")
    problems.raise_any()
    stall_seconds = 60 * parameters["stall_minutes"]
    return ArtistJob(config=config, inputs=inputs, script=script, stall_seconds=stall_seconds), upload


def _refuse_faults(job: ArtistJob, upload: UploadJob | None) -> None:
    """Refuse what forbids training on this machine, or uploading with this token."""
    faults = batch_problems(
        TRAITS, job.config, job.inputs.output_dir, adapter_count=1, uploads=upload is not None
    )
    # apply_tuning has asked the Hub about all of its artists.
    if upload is not None and not faults and not has_parent():
        faults = hub_problems([(upload, job.inputs.input_dir)])
    if faults:
        raise BatchFault(*faults)


def _train(job: ArtistJob, found: AdapterState, claim: Claim) -> None:
    for warning in job.script.warnings(job.config):
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if found.state is not State.PENDING:
        job.folder.set_aside(found.state)
    train_artist(job, claim)
    print(printable(f"complete: {job.inputs.output_dir}"))


def _script(path: Path | None, left_out: Sequence[str]) -> TrainScript:
    script = TrainScript.own() if path is None else TrainScript.read(path)
    if left_out and not script.is_own:
        raise UsageError(
            f"--leave-out {left_out[0]}: {script.path.name} takes every image of the folder; move the image "
            f"away, or train without --train-script"
        )
    return script


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
