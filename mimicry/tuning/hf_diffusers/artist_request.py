"""What the wrapper is asked to do: its parameters as a job and an upload, and what forbids them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimicry.common.errors import BatchFault, MimicryError, Problems, UsageError
from mimicry.common.processes import has_parent
from mimicry.study import AdapterId, Captions, ImageFolder
from mimicry.study.image_checks import bad_images, unreadable
from mimicry.tuning.hf_diffusers.artist_job import ArtistJob
from mimicry.tuning.hf_diffusers.launch import TrainScript
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.hub.names import refuse_names
from mimicry.tuning.hub.upload import HubOptions, Upload, hub_problems
from mimicry.tuning.options.click_options import take_config
from mimicry.tuning.options.flags import TrainingInputs
from mimicry.tuning.planning.preflight import batch_problems


def parse_request(parameters: dict[str, Any]) -> tuple[ArtistJob, Upload | None]:
    """Return the job that the command's parameters ask for, and where its adapter goes on the Hub.

    Raises:
        UsageError: all that is wrong with them, and with the names of the images.
    """
    inputs = TrainingInputs.take(parameters)
    problems = Problems()
    with problems:
        config = take_config(parameters)
        config.refuse_train_script(parameters["train_script"])
        problem = inputs.hold_out_problem(config.hold_out)
        if problem is not None:
            raise UsageError(problem)
    with problems:
        script = _script(parameters["train_script"], inputs.leave_out)
    with problems:
        upload = _upload_job(inputs.output_dir, parameters)
    with problems:
        names = {"--hub-model-id": parameters["hub_model_id"], "--hub-namespace": parameters["hub_namespace"]}
        refuse_names(names, parameters["base_model_id"])
    for option, images in (
        ("--input-dir", inputs.read_images(0)),
        ("--eval-data-dir", inputs.read_eval_images(0)),
        ("--caption-data-dir", inputs.read_caption_images()),
    ):
        with problems:
            problem = None if images is None else images.problem()
            if problem is not None:
                raise UsageError(f"{option}: {problem}")
    problems.raise_any()
    stall_seconds = 60 * parameters["stall_minutes"]
    return ArtistJob(config=config, inputs=inputs, script=script, stall_seconds=stall_seconds), upload


def _script(path: Path | None, left_out: Sequence[str]) -> TrainScript:
    script = TrainScript.own() if path is None else TrainScript.read(path)
    if left_out and not script.is_own:
        raise UsageError(
            f"--leave-out {left_out[0]}: {script.path.name} takes every image of the folder; move the image "
            f"away, or train without --train-script"
        )
    return script


def _upload_job(output_dir: Path, parameters: dict[str, Any]) -> Upload | None:
    """Return where the adapter goes on the Hub; None when it stays here."""
    if not parameters["push_to_hub"]:
        return None
    hub = HubOptions.from_parameters(parameters)
    name, adapter = parameters["hub_model_id"], AdapterId.parse(output_dir)
    if adapter is not None:
        return Upload.from_adapter(adapter, output_dir, TRAITS.hub_prefix, hub, name)
    if name is None:
        raise UsageError(
            f"--output-dir {output_dir} is not .../PROTECTION__COUNTERMEASURE/SPLIT/STYLE/ARTIST, which "
            f"names the repository on the Hub; type --hub-model-id NAME or --no-push-to-hub"
        )
    return Upload(
        folder=output_dir,
        repository=name,
        protection="unknown",
        countermeasure="unknown",
        artist=output_dir.absolute().name,
        namespace=hub.namespace,
        base_model_id=hub.base_model_id,
    )


def usable_data(job: ArtistJob) -> tuple[ImageFolder, Captions | None]:
    """Return the images of `job`, and their captions where they are asked for.

    Raises:
        MimicryError: some cannot be used; all of these at once.
    """
    images = job.inputs.read_images(job.config.hold_out)
    captions = None
    if job.config.captions:
        prompt, template = job.config.instance_prompt, job.config.caption_template
        captions = job.inputs.read_captions(job.config.hold_out).checked(prompt, template)
    bad = bad_images([images], reading=job.config.reading)
    problems = [*unreadable(bad), *(captions.problems if captions else ())]
    if problems:
        raise MimicryError(*problems)
    return images, captions


def refuse_faults(job: ArtistJob, upload: Upload | None) -> None:
    """Refuse what cannot be trained on this machine, or uploaded with this token.

    Raises:
        BatchFault: the reasons.
    """
    faults = batch_problems(
        TRAITS.problems(job.config, network=True),
        job.inputs.output_dir,
        1,
        TRAITS.disk_bytes(job.config, 1),
        uploads=upload is not None,
    )
    # apply_tuning has asked the Hub about all of its artists.
    if upload is not None and not faults and not has_parent():
        faults = hub_problems([(upload, job.inputs.input_dir)])
    if faults:
        raise BatchFault(*faults)
