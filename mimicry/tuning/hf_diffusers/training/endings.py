"""How a training ends, if not well, in its record."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from mimicry.common.errors import ClaimLost, MimicryError, TrainingFailed, disk_fault
from mimicry.common.processes import Interrupted, stop_signals_held
from mimicry.common.tokens import scrub
from mimicry.study import State
from mimicry.tuning.hf_diffusers.training.records import RunRecord


@contextmanager
def recording_end(record: RunRecord) -> Iterator[None]:
    """Run the body; an error that ends it is written into the record."""
    try:
        yield
    except Interrupted as stop:
        _write(record, State.INTERRUPTED, f"stopped by {stop}")
        raise
    except ClaimLost:
        raise
    except MimicryError as error:
        _write(record, State.FAILED, str(error))
        raise
    except torch.OutOfMemoryError as error:
        message = (
            f"out of GPU memory: {str(error).splitlines()[0]}; leave --gradient-checkpointing, "
            f"--cache-latents and --conditioning-table on and --checkpointed-blocks out, or type a smaller "
            f"--resolution or --train-batch-size, or --quantize-base nf4"
        )
        _write(record, State.FAILED, message)
        raise TrainingFailed(message) from error
    except Exception as error:
        fault = disk_fault(error)
        _write(record, State.FAILED, fault or f"{type(error).__name__}: {error}".strip())
        if fault:
            raise TrainingFailed(fault) from error
        raise
    finally:
        record.reports.close()


def _write(record: RunRecord, state: State, error: str) -> None:
    """Write that the run has ended without an adapter, unless there is one."""
    if not record.complete:
        # The fault that ended the run may also prevent this; that fault is what is reported then.
        with stop_signals_held(), suppress(OSError):
            record.write(state, error=scrub(error))
