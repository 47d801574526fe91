import subprocess
import sys

import psutil
import pytest

from tests.left_behind import lives, none_left_behind

# Starts a program in a session of its own, and leaves it to init.
_DAEMON = """\
import subprocess as s
print(s.Popen(["sleep", "600"], start_new_session=True, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)
"""


def start_daemon() -> psutil.Process:
    shown = subprocess.run([sys.executable, "-c", _DAEMON], check=True, capture_output=True, timeout=60)
    return psutil.Process(int(shown.stdout))


def test_what_was_left_behind_is_ended_and_named() -> None:
    with pytest.raises(AssertionError, match="sleep 600"), none_left_behind(grace_seconds=0):
        process = start_daemon()
    assert not lives(process)


def test_it_is_ended_when_the_body_fails_too() -> None:
    with pytest.raises(AssertionError) as failure, none_left_behind(grace_seconds=0):
        process = start_daemon()
        raise ValueError
    assert isinstance(failure.value.__context__, ValueError)
    assert not lives(process)


def test_what_ends_by_itself_is_no_fault() -> None:
    with none_left_behind():
        process = subprocess.Popen(["sleep", "0.3"])
    assert process.wait(0) == 0
