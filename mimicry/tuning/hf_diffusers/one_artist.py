"""Training one artist: what is asked for and what forbids it, the run of the script, and what it has left."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimicry.common.claims import CLAIM_VARIABLE, Claim
from mimicry.common.environment import without_launcher
from mimicry.common.errors import (
    AdapterBroken,
    BatchFault,
    MimicryError,
    Problems,
    TrainingFailed,
    UsageError,
    disk_fault,
    report,
)
from mimicry.common.files import set_aside, utc_now, write_json
from mimicry.common.processes import NOT_AS_ASKED, Child, Interrupted, running_child
from mimicry.common.text import printable, shell_line
from mimicry.common.tokens import mask_token, scrub
from mimicry.study import AdapterId, Captions, ImageFolder, State, StudyTree, bad_images, unreadable
from mimicry.tuning.adapters import AdapterFolder, judge_adapter, record_adapter
from mimicry.tuning.execution.outcome import POLL_SECONDS, Attempt, MetricsReader, StallGuard, follow
from mimicry.tuning.hf_diffusers.launch import (
    FOREIGN_OUTPUT,
    ForeignScript,
    ForeignTraining,
    TrainScript,
    launch_words,
    step_count,
)
from mimicry.tuning.hf_diffusers.spec.lora_modules import ADAPTER_FORMAT
from mimicry.tuning.hf_diffusers.stack import TRAITS
from mimicry.tuning.hub.names import refuse_names
from mimicry.tuning.hub.upload import HubOptions, Upload, hub_problems, upload_and_record
from mimicry.tuning.options.click_options import take_config
from mimicry.tuning.options.config import TuningConfig
from mimicry.tuning.options.flags import TrainingInputs
from mimicry.tuning.planning import StepDisplay, batch_problems, is_terminal

# The trainer finishes what it does within ten seconds of a stop signal.
_GRACE_SECONDS = 15.0
_SHOWN_LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class ArtistJob:
    config: TuningConfig
    inputs: TrainingInputs
    script: TrainScript
    stall_seconds: float

    @property
    def folder(self) -> AdapterFolder:
        return AdapterFolder(self.inputs.output_dir, ADAPTER_FORMAT)

    def environment(self) -> tuple[dict[str, str], str]:
        """Return the script's environment, and a line on what of ours it lacks; empty for nothing."""
        around, removed = without_launcher(os.environ)
        return around | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}, removed

    def command(self) -> list[str]:
        inputs = replace(self.inputs, output_dir=self.script.output_dir(self.inputs.output_dir))
        return launch_words(self.script, self.script.words(self.config, inputs), self.config)

    def usable_data(self) -> tuple[ImageFolder, Captions | None]:
        """Return the images and captions; raises MimicryError for all that cannot be used."""
        images = self.inputs.read_images(self.config.hold_out)
        captions = None
        if self.config.captions:
            prompt, template = self.config.instance_prompt, self.config.caption_template
            captions = self.inputs.read_captions(self.config.hold_out).checked(prompt, template)
        bad = bad_images([images], reading=self.config.reading)
        problems = [*unreadable(bad), *(captions.problems if captions else ())]
        if problems:
            raise MimicryError(*problems)
        return images, captions


class Supervised:
    """The wrapper was started by apply_tuning, which has handed its claim on.

    It has asked the Hub, shows warnings, steps and the log, notices a stall, and keeps the study's tracker.
    """

    def hub_problems(self, job: ArtistJob, upload: Upload) -> list[str]:
        return []

    def warnings(self, job: ArtistJob) -> list[str]:
        """Return what is most likely not meant, but for what the script says."""
        return []

    @contextmanager
    def watching(self, job: ArtistJob) -> Iterator[Callable[[Child], int]]:
        """Yield what waits for a child that is started in the body, and returns its exit code."""
        yield _wait

    @contextmanager
    def tracking(self, job: ArtistJob) -> Iterator[None]:
        """Run the body, and tell the study's tracker how the adapter is then."""
        yield

    def log_excerpt(self, job: ArtistJob, attempt: Attempt) -> str:
        """Return what a message on a training that failed says of its log."""
        return ""


class Standalone(Supervised):
    """The wrapper was started by hand, and does all this itself."""

    def hub_problems(self, job: ArtistJob, upload: Upload) -> list[str]:
        return hub_problems([(upload, job.inputs.input_dir)])

    def warnings(self, job: ArtistJob) -> list[str]:
        return TRAITS.warnings(job.config)

    @contextmanager
    def watching(self, job: ArtistJob) -> Iterator[Callable[[Child], int]]:
        folder = job.inputs.output_dir
        metrics = MetricsReader(AdapterFolder(job.script.output_dir(folder)).metrics)
        display = StepDisplay(folder.name, step_count(job.config, job.inputs)) if is_terminal() else None
        # Only our own trainer writes metrics.jsonl as it goes.
        guard = StallGuard(job.folder.log, job.stall_seconds) if job.script.is_own else None
        try:
            yield lambda child: follow(child, metrics, display.step if display else lambda _: None, guard)
        finally:
            if display is not None:
                display.close()

    @contextmanager
    def tracking(self, job: ArtistJob) -> Iterator[None]:
        tree = StudyTree.around(job.inputs.output_dir)
        try:
            yield
        finally:
            # A study that apply_tuning has not worked on has no tracker, and gets none.
            if tree is not None and tree.tracker.exists():
                try:
                    record_adapter(tree, job.inputs.output_dir)
                except MimicryError as error:  # how the training ended comes first
                    report(error)

    def log_excerpt(self, job: ArtistJob, attempt: Attempt) -> str:
        lines = [f"  | {line}" for line in attempt.log_lines(_SHOWN_LOG_LINES)]
        return "\n".join(["", f"  the last lines of {job.folder.log}:", *lines])


def caller(environment: Mapping[str, str]) -> Supervised:
    """Return who has started the wrapper: whoever hands a claim on is apply_tuning."""
    return Supervised() if CLAIM_VARIABLE in environment else Standalone()


def _wait(child: Child) -> int:
    while (code := child.wait(POLL_SECONDS)) is None:
        pass
    return code


def parse_request(parameters: dict[str, Any]) -> tuple[ArtistJob, Upload | None]:
    """Return the job and the upload that are asked for; raises UsageError for all that is wrong with them."""
    inputs = TrainingInputs.take(parameters)
    problems = Problems()
    with problems:
        config = take_config(parameters)
        config.refuse_train_script(parameters["train_script"])
        if (problem := inputs.hold_out_problem(config.hold_out)) is not None:
            raise UsageError(problem)
    with problems:
        script = _script(parameters["train_script"], inputs)
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
            if images is not None and (problem := images.problem()) is not None:
                raise UsageError(f"{option}: {problem}")
    problems.raise_any()
    stall_seconds = 60 * parameters["stall_minutes"]
    return ArtistJob(config=config, inputs=inputs, script=script, stall_seconds=stall_seconds), upload


def _script(path: Path | None, inputs: TrainingInputs) -> TrainScript:
    if path is None:
        return TrainScript()
    script = ForeignScript.read(path)
    if inputs.leave_out:
        raise UsageError(
            f"--leave-out {inputs.leave_out[0]}: {script.path.name} takes every image of the folder; move "
            f"the image away, or train without --train-script"
        )
    return script


def _upload_job(output_dir: Path, parameters: dict[str, Any]) -> Upload | None:
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


def run_job(job: ArtistJob, upload: Upload | None, called_by: Supervised, *, overwrite: bool) -> int:
    """Train the artist, unless a complete adapter is there, and upload the adapter; return the exit code."""
    images, captions = job.usable_data()
    _refuse_faults(job, upload, called_by)
    spec = TRAITS.adapter_spec(job.config, job.script.identity)
    with Claim.take(job.inputs.output_dir) as claim:
        former = judge_adapter(job.folder, spec, images, captions=captions, full=True)
        kept = former.state in (State.COMPLETE, State.STALE) and not overwrite
        if kept:
            reason = f" ({former.reason})" if former.reason else ""
            print(printable(f"{former.state}: {job.inputs.output_dir}{reason}"))
            if former.state is State.STALE:
                print("it is kept; type --overwrite to train it again")
        else:
            for warning in (*job.script.warnings(job.config), *called_by.warnings(job)):
                print(f"warning: {printable(warning)}", file=sys.stderr)
            if former.state is not State.WAITING:
                job.folder.set_aside(former.state)
            train_artist(job, called_by, claim)
            print(printable(f"complete: {job.inputs.output_dir}"))
        if upload is not None:
            print(f"uploaded: {upload_and_record(upload).url}")
    return NOT_AS_ASKED if kept and former.state is State.STALE else 0


def _refuse_faults(job: ArtistJob, upload: Upload | None, called_by: Supervised) -> None:
    faults = batch_problems(
        TRAITS.problems(job.config, network=True),
        job.inputs.output_dir,
        1,
        TRAITS.disk_bytes(job.config, 1),
        uploads=upload is not None,
    )
    if upload is not None and not faults:
        faults = called_by.hub_problems(job, upload)
    if faults:
        raise BatchFault(*faults)


def train_artist(job: ArtistJob, called_by: Supervised, claim: Claim | None = None) -> None:
    """Train the artist; when this returns, a verified adapter lies in the output folder, whose claim is
    `claim`.

    Raises:
        TrainingFailed: there is no adapter; the message says why and where the log is.
        Interrupted: the trainer received a stop signal.
        ClaimLost: another process has taken the folder over.
    """
    with called_by.tracking(job):
        attempt = Attempt.begin(job.folder)
        former_record = _record_bytes(job)
        code = _run_to_end(job, called_by, claim)
        if claim is not None:
            claim.check()
        failure = attempt.failure(code)
        if failure is None:
            return
        stopped_by = attempt.stopped_by()
        record, run = job.folder.record, job.folder.readable_run
        # The trainer may have been killed before it recorded an end, or may not have begun.
        if job.script.is_own and (_record_bytes(job) == former_record or run.status == State.RUNNING):
            state = State.FAILED if stopped_by is None else State.INTERRUPTED
            # On a full disk there is no room for it, which the caller reports.
            with suppress(OSError):
                write_json(record, run.ended(state, scrub(failure), utc_now()))
        if stopped_by is not None:
            raise Interrupted(stopped_by)
        raise TrainingFailed(failure + called_by.log_excerpt(job, attempt))


def _run_to_end(job: ArtistJob, called_by: Supervised, claim: Claim | None) -> int:
    script, folder = job.script, job.folder
    # What a stopped script has left must not be taken for the result of this one. Our own trainer checks its
    # checkpoints itself.
    leftovers = [FOREIGN_OUTPUT, *([] if script.is_own else folder.checkpoint_names())]
    set_aside(folder.path, leftovers, "unfinished")
    foreign = None if script.is_own else ForeignTraining.begin(script, job.config, job.inputs)
    try:
        code = run_script(job, called_by, {} if claim is None else claim.variable())
        if foreign is not None:
            with nullcontext() if claim is None else claim.fenced():
                foreign.publish(folder, job.command())
    except AdapterBroken as error:
        raise TrainingFailed(*error.problems) from error
    except OSError as error:
        raise TrainingFailed(disk_fault(error) or f"{folder}: {error.strerror}") from error
    return code


def run_script(job: ArtistJob, called_by: Supervised, variable: Mapping[str, str]) -> int:
    """Run the script to its end; return the exit code of its launcher."""
    log, command = job.folder.log, job.command()
    environment, removed = job.environment()
    with ExitStack() as stack:
        stack.callback(mask_token, log)
        output = stack.enter_context(log.open("ab"))
        for line in (f"--- {utc_now()} {shell_line(command)}", removed):
            if line:
                output.write(f"{line}\n".encode("utf-8", "replace"))
        output.flush()
        wait_for = stack.enter_context(called_by.watching(job))
        child = stack.enter_context(
            running_child(
                command, output=output, environment={**environment, **variable}, grace_seconds=_GRACE_SECONDS
            )
        )
        return wait_for(child)


def _record_bytes(job: ArtistJob) -> bytes:
    try:
        return job.folder.record.read_bytes()
    except OSError:
        return b""
