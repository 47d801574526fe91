"""accelerate's launcher, which leaves no traceback of its own in the log of a training that was stopped."""

import signal
import sys
from pathlib import Path

if __package__ in (None, ""):  # started by its path: import from this checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from mimicry.common.processes import quick_imports, quicken_exit

# Raised by torch's launcher of several processes once it has passed a stop signal on.
_STOPPED = "SignalException"


def main() -> int:
    """Launch what the command line says; a stop signal ends this process without a word."""
    quicken_exit()
    # A Ctrl-C reaches the trainer too, which says what it does about it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with quick_imports():
        from accelerate.commands import launch

    try:
        launch.main()
    except Exception as error:
        if type(error).__name__ != _STOPPED:
            raise
        return 128 + int(getattr(error, "sigval", signal.SIGTERM))
    return 0


if __name__ == "__main__":
    sys.exit(main())
