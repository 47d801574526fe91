"""Running an artist's training script through accelerate: its log, its steps, and its end."""

import os
from collections.abc import Mapping
from contextlib import ExitStack

from mimicry.common.children import running_child
from mimicry.common.claims import CLAIM_VARIABLE
from mimicry.common.files import utc_now
from mimicry.common.scrubbing import mask_token
from mimicry.common.text import shell_line
from mimicry.tuning.adapters import AdapterFolder
from mimicry.tuning.execution.outcome import MetricsReader, StallGuard, follow
from mimicry.tuning.hf_diffusers.artist_job import ArtistJob
from mimicry.tuning.progress import StepDisplay, is_terminal

# The trainer finishes what it does within ten seconds of a stop signal.
_GRACE_SECONDS = 15.0


def run_script(job: ArtistJob, variable: Mapping[str, str]) -> int:
    """Run the script to its end, and return the exit code of its launcher."""
    log = job.folder.log
    environment, removed = job.environment()
    with ExitStack() as stack:
        stack.callback(mask_token, log)
        output = stack.enter_context(log.open("ab"))
        command = job.command()
        output.write(f"--- {utc_now()} {shell_line(command)}\n".encode("utf-8", "replace"))
        if removed:
            output.write(f"{removed}\n".encode("utf-8", "replace"))
        output.flush()
        metrics = MetricsReader(AdapterFolder(job.trainer_output_dir).metrics)
        child = stack.enter_context(
            running_child(
                command, output=output, environment={**environment, **variable}, grace_seconds=_GRACE_SECONDS
            )
        )
        # Under apply_tuning there is no terminal here, and it shows the steps itself.
        display = StepDisplay(job.inputs.output_dir.name, job.step_count) if is_terminal() else None
        if display is not None:
            stack.callback(display.close)
        # Only our own trainer writes metrics.jsonl as it goes. Who has handed us a claim watches it already.
        watched = job.script.is_own and CLAIM_VARIABLE not in os.environ
        guard = StallGuard(log, job.stall_seconds) if watched else None
        return follow(child, metrics, display.step if display else _ignore, guard)


def _ignore(line: object) -> None:
    """Ignore a step."""
