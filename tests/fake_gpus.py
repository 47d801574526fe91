"""GPUs that are not there: an nvidia-smi in a folder of PATH that lists them."""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass
class FakeGpus:
    """A machine with the GPUs that the stand-in for nvidia-smi in `folder` lists: none, before it is told."""

    folder: Path

    def listing(self, text: str, code: int = 0) -> None:
        """List what `nvidia-smi -L` would print, and exit with `code`."""
        program = self.folder / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -L ] || exit 2\nprintf %s {shlex.quote(text)}\nexit {code}\n'
        )
        program.chmod(0o755)

    def count(self, number: int) -> None:
        """List so many whole GPUs."""
        self.listing("".join(f"GPU {place}: NVIDIA X (UUID: GPU-{place:04})\n" for place in range(number)))
