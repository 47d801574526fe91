"""Two machines on one study, over a shared file system whose locks do not reach from one to the other."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from mimicry.study.tree import State
from tests.small_study import bookmarks_in
from tests.tuning.quick_studio import DEADLINE_SECONDS, QuickStudio, quick_calls

_CONDITIONS = ("--protection=all", "--countermeasure=all")
_HOST = """
import fcntl, socket, sys
host = sys.argv.pop(1)
socket.gethostname = lambda: host
fcntl.flock = lambda *_: None
import mimicry.tuning.apply_tuning as program
print('ready', flush=True)
sys.stdin.readline()
sys.exit(program.main())
"""


def test_each_cell_is_trained_once_and_the_tracker_ends_whole(quick_studio: QuickStudio) -> None:
    words = quick_studio.words(*_CONDITIONS)
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", _HOST, f"node{number}", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    for host in hosts:
        assert host.stdout is not None
        host.stdout.readline()
    for host in hosts:
        assert host.stdin is not None
        host.stdin.write("begin\n")
        host.stdin.flush()
    said = [host.communicate(timeout=DEADLINE_SECONDS)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    trained = Counter(Path(call["words"][1]) for call in quick_calls(quick_studio.stack))
    assert (len(trained), set(trained.values())) == (12, {1})

    # Without a lock, one may have written over what the other had noted; a later call notes it again.
    assert quick_studio.tune(*_CONDITIONS).code == 0
    assert len(quick_calls(quick_studio.stack)) == 12
    marks = bookmarks_in(quick_studio.tree)
    assert Counter(mark["status"] for mark in marks.values()) == {State.COMPLETE: 12}
