"""Run this stack's command for one artist, or validate its runner_config.json with --check-only."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from mimicry.tuning.stacks import run_stack

if __name__ == "__main__":
    sys.exit(run_stack(Path(__file__).resolve().parent))
