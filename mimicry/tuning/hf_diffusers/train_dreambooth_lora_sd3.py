"""Train one DreamBooth LoRA adapter of a Stable Diffusion 3 model.

    accelerate launch train_dreambooth_lora_sd3.py --instance_data_dir DIR --output_dir DIR [flags]

The command line is that of the diffusers example of the same name. What follows is done in stages, each of
which frees what it needed: the text encoders, then the VAE, then the transformer.
"""

import os
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from mimicry import __version__
from mimicry.common.children import Interrupted, stop_signals_raise, stop_with_parent
from mimicry.common.environment import load_environment
from mimicry.common.errors import run_reporting_errors
from mimicry.common.scrubbing import scrubbed_output


def main() -> int:
    """Train, and return the exit code."""
    print(f"mimicry {__version__}, {Path(__file__).name}", flush=True)
    stop_with_parent()
    try:
        with stop_signals_raise(), scrubbed_output():
            return run_reporting_errors(train)
    except Interrupted as stop:
        print(f"stopped by {stop}", file=sys.stderr)
        return stop.exit_code


def train() -> int:
    """Train the adapter that the command line asks for."""
    load_environment()
    # It warns that torchvision is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from mimicry.tuning.hf_diffusers.sd3.flags import parse_job
    from mimicry.tuning.hf_diffusers.sd3.stages import train_adapter

    train_adapter(parse_job())
    return 0


if __name__ == "__main__":
    sys.exit(main())
