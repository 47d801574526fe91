"""Train one DreamBooth LoRA adapter of a Stable Diffusion 3 model.

accelerate launch [--multi_gpu --num_processes N] train_dreambooth_lora_sd3.py
    --instance_data_dir DIR --output_dir DIR [flags of the diffusers example of the same name]
"""

import os
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from mimicry import __version__
from mimicry.common.environment import (
    load_environment,
    process_count,
    process_index,
    quiet_libraries,
)
from mimicry.common.errors import MimicryError, run_reporting_errors
from mimicry.common.processes import (
    Interrupted,
    quick_imports,
    quicken_exit,
    stop_signals_raise,
    stop_with_parent,
)
from mimicry.common.tokens import scrubbed_output

# Several processes end within ten seconds of a stop signal, unless one waits for another that is gone.
_KILL_SECONDS = 15.0
# The main process gets the same error in the meantime; if another ended first, the launcher might stop it
# before it reports the error.
_SILENT_SECONDS = 20.0


def main() -> int:
    quicken_exit()
    alone, speaks = process_count() == 1, process_index() == 0
    if speaks:
        print(f"mimicry {__version__}, {Path(__file__).name}", flush=True)
    stop_with_parent(None if alone else _KILL_SECONDS)
    try:
        with stop_signals_raise(), scrubbed_output():
            if speaks:
                return run_reporting_errors(train)
            try:
                return train()
            except MimicryError as error:
                # Before the processes have joined, all get the same error. The main one reports it.
                time.sleep(_SILENT_SECONDS)
                return error.exit_code
    except Interrupted as stop:
        if speaks:
            print(f"stopped by {stop}", file=sys.stderr)
        return stop.exit_code


def train() -> int:
    load_environment()
    quiet_libraries()
    # Each stage needs other sizes than the one before: memory that is free in pieces would be lost.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with quick_imports():
        from accelerate import PartialState

        from mimicry.tuning.hf_diffusers.sd3.stages import train_adapter
        from mimicry.tuning.hf_diffusers.spec.trainer_args import parse_args

    train_adapter(parse_args())
    PartialState().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
