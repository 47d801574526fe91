"""Samples the memory that is in use on the GPUs of this machine, as nvidia-smi tells it."""

import shutil
import subprocess
import threading

_SAMPLE_SECONDS = 0.2


class GpuWatch:
    """A context in which the peak is sampled; `peak_bytes` is 0 on a machine without nvidia-smi.

    Counted is what is used on all GPUs beyond what was used at the start, by whatever process.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._before = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "GpuWatch":
        if shutil.which("nvidia-smi") is not None:
            self._before = _used_bytes()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _used_bytes() - self._before)


def _used_bytes() -> int:
    """Return the memory in use on all GPUs; 0 where nvidia-smi cannot say."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return sum(int(word) for word in done.stdout.split() if word.isdecimal()) * 2**20
